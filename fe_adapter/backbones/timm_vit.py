"""Image transformers of timm."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fe_adapter.backbones.backbone import (
    IMAGENET,
    MAPS,
    PACKS,
    POOLS,
    WINDOWS,
    Adapter,
    Attention,
    Backbone,
    Forwards,
    Preprocessing,
    interpolation_named,
    pair,
)
from fe_adapter.backbones.weights import load_weights
from fe_adapter.errors import InputError

NAME = EXTRA = "timm"
REFUSED: dict[str, str] = {
    "SwinTransformer": WINDOWS,
    "SwinTransformerV2": WINDOWS,
    "Hiera": POOLS,
    "VisionTransformerSAM": MAPS,
    "NaFlexVit": PACKS,
}


def describe(model: nn.Module) -> Backbone | None:
    """The image transformer in ``model``, if it is of this library."""
    patch_embed = getattr(model, "patch_embed", None)
    if not all(hasattr(model, name) for name in ("blocks", "num_prefix_tokens", "embed_dim", "forward_features")):
        return None
    if patch_embed is None or getattr(patch_embed, "grid_size", None) is None:
        raise InputError(f"{type(model).__name__} cannot be adapted: it has no fixed patch grid")
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return Backbone(
        vit=model,
        blocks_path="blocks",
        embed_dim=model.embed_dim,  # type: ignore[arg-type]
        num_prefix_tokens=model.num_prefix_tokens,  # type: ignore[arg-type]
        grid_size=pair(patch_embed.grid_size),
        patch_size=pair(patch_embed.patch_size),
        preprocessing=Preprocessing(
            pair(patch_embed.img_size),
            tuple(cfg.get("mean", IMAGENET[0])),
            tuple(cfg.get("std", IMAGENET[1])),
            interpolation_named(cfg.get("interpolation", "bilinear")),
            min(1.0, cfg.get("crop_pct", 1.0)),
        ),
        frame_features=frame_features,
    )


def frame_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit.forward_features(images)
    by_class_token = getattr(vit, "cls_token", None) is not None and vit.global_pool != "avg"
    pooled = tokens[:, 0] if by_class_token else tokens[:, vit.num_prefix_tokens :].mean(1)
    return vit.fc_norm(pooled)  # the identity unless the model norms after pooling


def build(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    import timm

    if not name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise InputError(f"timm has no model {name!r}; close to it are {', '.join(close)}")
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, **args)
    if path is not None:
        load_weights(model, path, _resampled)
    return model


def _resampled(model: Any, name: str, value: Tensor) -> Tensor | None:
    from timm.layers import resample_abs_pos_embed

    if name != "pos_embed" or value.dim() != 3 or value.shape[-1] != model.embed_dim:
        return None
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    return resample_abs_pos_embed(value, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def _block(self: Any, adapter: Adapter, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
    x = adapter(x)
    return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _eva_block(self: Any, adapter: Adapter, x: Tensor, rope: Tensor | None = None, **attention: Any) -> Tensor:
    z = self.attn(self.norm1(x), rope=rope, **attention)
    x = x + self.drop_path1(z if self.gamma_1 is None else self.gamma_1 * z)
    x = adapter(x)
    z = self.mlp(self.norm2(x))
    return x + self.drop_path2(z if self.gamma_2 is None else self.gamma_2 * z)


def _beit_block(self: Any, adapter: Adapter, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    z = self.attn(self.norm1(x), shared_rel_pos_bias=shared_rel_pos_bias)
    x = x + self.drop_path1(z if self.gamma_1 is None else self.gamma_1 * z)
    x = adapter(x)
    z = self.mlp(self.norm2(x))
    return x + self.drop_path2(z if self.gamma_2 is None else self.gamma_2 * z)


FORWARDS: Forwards = {
    ("timm.models.vision_transformer", "Block"): _block,
    ("timm.models.eva", "EvaBlock"): _eva_block,
    ("timm.models.beit", "Block"): _beit_block,
}


def attention_modules(vit: nn.Module) -> list[nn.Module]:
    """The modules of ``vit`` that `attention_forward` can serve."""
    kind = ("timm.layers.attention", "Attention")
    return [module for module in vit.modules() if (type(module).__module__, type(module).__name__) == kind]


def attention_forward(module: Any, x: Tensor, attention: Attention) -> Tensor:
    """The forward of timm's ``Attention`` without masks, but for the product, which is ``attention``'s."""
    q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, module.head_dim)).unbind(2)  # (B, L, heads, width)
    q, k = module.q_norm(q), module.k_norm(k)
    dropout = module.attn_drop.p if module.training else 0.0
    y = module.norm(attention(q, k, v, None, dropout, module.scale).flatten(2))
    if getattr(module, "gate", None) is not None:
        y = y * module.gate(x).sigmoid()
    return module.proj_drop(module.proj(y))
