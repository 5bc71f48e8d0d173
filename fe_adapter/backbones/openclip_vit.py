"""Image towers of open_clip."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fe_adapter.backbones import timm_vit
from fe_adapter.backbones.backbone import CLIP, Adapter, Backbone, Forwards, Preprocessing, interpolation_named, pair
from fe_adapter.errors import InputError
from fe_adapter.libraries import quiet

NAME = EXTRA = "openclip"
REFUSED: dict[str, str] = {}


def describe(model: nn.Module) -> Backbone | None:
    """The image transformer in ``model``, if it is of this library."""
    visual: Any = getattr(model, "visual", model)
    prefix = "" if visual is model else "visual."
    trunk = getattr(visual, "trunk", None)
    cfg: dict[str, Any] = getattr(visual, "preprocess_cfg", None) or {}
    if isinstance(trunk, nn.Module):  # open_clip's TimmModel
        backbone = timm_vit.describe(trunk)
        if backbone is None:
            raise InputError(f"the tower {type(trunk).__name__} of this open_clip model is no plain image transformer")
        return dataclasses.replace(backbone, blocks_path=f"{prefix}trunk.{backbone.blocks_path}")
    transformer = getattr(visual, "transformer", None)
    if not hasattr(transformer, "resblocks") or not hasattr(visual, "conv1"):
        return None
    if not getattr(transformer, "batch_first", False):
        raise InputError("this CLIP tower runs tokens first, (L, B, D); build it with batch_first=True")
    if getattr(visual, "attn_pool", None) is not None:
        raise InputError("this CLIP tower pools by attention (CoCa); it has no frame feature before its pooler")
    mean, std = cfg.get("mean", CLIP[0]), cfg.get("std", CLIP[1])
    return Backbone(
        vit=visual,
        blocks_path=f"{prefix}transformer.resblocks",
        embed_dim=visual.conv1.out_channels,
        num_prefix_tokens=1,
        grid_size=pair(visual.grid_size),
        patch_size=pair(visual.patch_size),
        preprocessing=Preprocessing(
            pair(visual.image_size), tuple(mean), tuple(std), interpolation_named(cfg.get("interpolation", "bicubic"))
        ),
        frame_features=frame_features,
    )


def frame_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit.transformer(vit._embeds(images))
    if vit.final_ln_after_pool:
        return vit.ln_post(vit._global_pool(tokens)[0])
    pooled = vit._global_pool(vit.ln_post(tokens))[0]
    return pooled if pooled.dim() == 2 else pooled[:, 0]  # pool_type "none" gives all tokens


def build(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    import open_clip

    architecture, _, tag = name.partition("/")
    if name.startswith("hf-hub:"):
        with quiet("root"):  # it raises what it logs
            return open_clip.create_model(name, load_weights=pretrained, **args).visual
    if architecture not in open_clip.list_models():
        raise InputError(f"open_clip has no model {architecture!r}; see open_clip.list_models()")
    if pretrained and not tag:
        raise InputError(f"openclip:{name} names no pretrained weights; write openclip:{architecture}/TAG")
    source = str(path) if path is not None else tag if pretrained else None
    with quiet("root"):
        model = open_clip.create_model(architecture, pretrained=source, load_weights=source is not None, **args)
    return model.visual


def _block(
    self: Any, adapter: Adapter, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
) -> Tensor:
    x = q_x + self.ls_1(self.attention(q_x=self.ln_1(q_x), k_x=k_x, v_x=v_x, attn_mask=attn_mask))
    x = adapter(x)
    return x + self.ls_2(self.mlp(self.ln_2(x)))


def _custom_block(self: Any, adapter: Adapter, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    x = x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), attn_mask=attn_mask)))
    x = adapter(x)
    return x + self.ls_2(self.mlp(self.ln_2(x)))


FORWARDS: Forwards = {
    ("open_clip.transformer", "ResidualAttentionBlock"): _block,
    ("open_clip.transformer", "CustomResidualAttentionBlock"): _custom_block,
}
