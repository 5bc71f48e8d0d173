"""What the image transformers of timm, transformers, open_clip and torchvision look like from here.

Everything is read from the model's own attributes; nothing is decided by version numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# transformers keeps these beside the weights, in preprocessor_config.json; by model_type, for weights that came without
TRANSFORMERS_STATISTICS = {"clip": CLIP, "siglip": HALF, "vit": HALF, "beit": HALF}

REFUSED = {
    "SwinTransformer": "its windows and stages leave no one grid of tokens",
    "SwinTransformerV2": "its windows and stages leave no one grid of tokens",
    "SwinModel": "its windows and stages leave no one grid of tokens",
    "Swinv2Model": "its windows and stages leave no one grid of tokens",
    "Hiera": "it pools tokens between its stages",
    "HieraModel": "it pools tokens between its stages",
    "VisionTransformerSAM": "its blocks take a (B, H, W, D) map, not (B, L, D) tokens",
    "SamVisionEncoder": "its blocks take a (B, H, W, D) map, not (B, L, D) tokens",
    "SamModel": "its blocks take a (B, H, W, D) map, not (B, L, D) tokens",
    "NaFlexVit": "it packs images of different sizes, so that tokens have no one grid",
    "Siglip2VisionModel": "it packs images of different sizes, so that tokens have no one grid",
    "ViTMAEModel": "it drops and shuffles patches, so that frames do not line up",
    "ViTMAEForPreTraining": "it drops and shuffles patches, so that frames do not line up",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of an image: size ``(height, width)`` in pixels, mean and std of RGB in [0, 1]."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One image transformer, described.

    Args:
        vit: the transformer itself, without what may be around it (a text tower, a classifier).
        blocks_path: attribute path of its blocks inside the model that was asked about.
        embed_dim: width D.
        num_prefix_tokens: class, distillation and register tokens P.
        grid_size: patches ``(H, W)`` at the size it was built for.
        patch_size: pixels ``(height, width)`` of a patch.
        preprocessing: None if the model says nothing about it.
        frame_features: ``(vit, images (n, 3, h, w)) -> (n, D)``, after the final norm, before any projection or head.
    """

    vit: nn.Module
    blocks_path: str
    embed_dim: int
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    patch_size: tuple[int, int]
    preprocessing: Preprocessing | None
    frame_features: Callable[[nn.Module, Tensor], Tensor]


def describe_backbone(model: nn.Module) -> Backbone:
    """Find the image transformer in ``model`` and describe it.

    Raises:
        InputError: the model cannot be adapted (the message says why) or is of no known library.
    """
    name = type(model).__name__
    if name in REFUSED:
        raise InputError(f"{name} cannot be adapted: {REFUSED[name]}")
    for describe in (_describe_open_clip, _describe_timm, _describe_torchvision, _describe_transformers):
        backbone = describe(model)
        if backbone is not None:
            _refuse_patch_dropout(backbone.vit)
            return backbone
    raise InputError(
        f"{name} is no image transformer of timm, transformers, open_clip or torchvision; "
        "to adapt it anyway give blocks_path, embed_dim and num_prefix_tokens"
    )


def get_blocks(model: nn.Module, path: str) -> list[nn.Module]:
    """The blocks at the attribute ``path`` of ``model``.

    Raises:
        InputError: there is nothing at the path, or no sequence of modules.
    """
    try:
        blocks = model.get_submodule(path)
    except AttributeError:
        raise InputError(f"{type(model).__name__} has no {path!r}") from None
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
        raise InputError(f"{path!r} of {type(model).__name__} is no list of blocks")
    return list(blocks)


def _refuse_patch_dropout(vit: nn.Module) -> None:
    for module in vit.modules():
        if type(module).__name__ in ("PatchDropout", "PatchDropoutWithIndices") and module.prob > 0:  # type: ignore[operator]
            raise InputError("a backbone with patch dropout cannot be adapted: frames would keep different patches")


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))


def _patches(size: Any, patch: Any) -> tuple[int, int]:
    (height, width), (patch_height, patch_width) = _pair(size), _pair(patch)
    return height // patch_height, width // patch_width


# timm ---------------------------------------------------------------------------------------------------------------


def _describe_timm(model: nn.Module) -> Backbone | None:
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
        grid_size=_pair(patch_embed.grid_size),
        patch_size=_pair(patch_embed.patch_size),
        preprocessing=Preprocessing(
            _pair(patch_embed.img_size), tuple(cfg.get("mean", IMAGENET[0])), tuple(cfg.get("std", IMAGENET[1]))
        ),
        frame_features=_timm_features,
    )


def _timm_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit.forward_features(images)
    by_class_token = getattr(vit, "cls_token", None) is not None and vit.global_pool != "avg"
    pooled = tokens[:, 0] if by_class_token else tokens[:, vit.num_prefix_tokens :].mean(1)
    return vit.fc_norm(pooled)  # the identity unless the model norms after pooling


# torchvision --------------------------------------------------------------------------------------------------------


def _describe_torchvision(model: nn.Module) -> Backbone | None:
    if not all(hasattr(model, name) for name in ("conv_proj", "class_token", "encoder", "hidden_dim")):
        return None
    return Backbone(
        vit=model,
        blocks_path="encoder.layers",
        embed_dim=model.hidden_dim,  # type: ignore[arg-type]
        num_prefix_tokens=1,
        grid_size=_patches(model.image_size, model.patch_size),
        patch_size=_pair(model.patch_size),
        preprocessing=Preprocessing(_pair(model.image_size), *IMAGENET),
        frame_features=_torchvision_features,
    )


def _torchvision_features(vit: Any, images: Tensor) -> Tensor:
    patches = vit._process_input(images)
    return vit.encoder(torch.cat([vit.class_token.expand(len(patches), -1, -1), patches], dim=1))[:, 0]


# open_clip ----------------------------------------------------------------------------------------------------------


def _describe_open_clip(model: nn.Module) -> Backbone | None:
    visual: Any = getattr(model, "visual", model)
    prefix = "" if visual is model else "visual."
    trunk = getattr(visual, "trunk", None)
    cfg: dict[str, Any] = getattr(visual, "preprocess_cfg", None) or {}
    if isinstance(trunk, nn.Module):  # open_clip's TimmModel
        backbone = _describe_timm(trunk)
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
        grid_size=_pair(visual.grid_size),
        patch_size=_pair(visual.patch_size),
        preprocessing=Preprocessing(_pair(visual.image_size), tuple(mean), tuple(std)),
        frame_features=_open_clip_features,
    )


def _open_clip_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit.transformer(vit._embeds(images))
    if vit.final_ln_after_pool:
        return vit.ln_post(vit._global_pool(tokens)[0])
    pooled = vit._global_pool(vit.ln_post(tokens))[0]
    return pooled if pooled.dim() == 2 else pooled[:, 0]  # pool_type "none" gives all tokens


# transformers -------------------------------------------------------------------------------------------------------

_TRANSFORMERS_BLOCKS = ("layers", "encoder.layers", "encoder.layer", "model.layer", "layer")


def _describe_transformers(model: nn.Module) -> Backbone | None:
    if not hasattr(model, "config"):
        return None
    for path in ("", "vision_model", "vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip"):
        core = getattr(model, path, None) if path else model
        if not isinstance(core, nn.Module) or not hasattr(core, "embeddings") or not hasattr(core, "config"):
            continue
        if type(core).__name__ in REFUSED:
            raise InputError(f"{type(core).__name__} cannot be adapted: {REFUSED[type(core).__name__]}")
        for blocks in _TRANSFORMERS_BLOCKS:
            try:
                found = core.get_submodule(blocks)
            except AttributeError:
                continue
            if isinstance(found, nn.ModuleList):
                return _transformers_backbone(core, ".".join(filter(None, (path, blocks))))
    return None


def _transformers_backbone(core: Any, blocks_path: str) -> Backbone | None:
    config, embeddings = core.config, core.embeddings
    if not hasattr(config, "patch_size") or not hasattr(config, "image_size"):
        return None
    registers = getattr(embeddings, "register_tokens", None)
    prefix = sum(
        getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding", "distillation_token")
    )
    kind = str(config.model_type).removesuffix("_vision_model")
    statistics = getattr(config, "image_statistics", None) or TRANSFORMERS_STATISTICS.get(kind, IMAGENET)
    return Backbone(
        vit=core,
        blocks_path=blocks_path,
        embed_dim=config.hidden_size,
        num_prefix_tokens=prefix + (0 if registers is None else registers.shape[1]),
        grid_size=_patches(config.image_size, config.patch_size),
        patch_size=_pair(config.patch_size),
        preprocessing=Preprocessing(_pair(config.image_size), *statistics),
        frame_features=_transformers_features,
    )


def _transformers_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit(pixel_values=images).last_hidden_state
    embeddings = vit.embeddings
    if hasattr(embeddings, "class_embedding"):  # CLIP leaves its final norm to the pooler
        return vit.post_layernorm(tokens[:, 0])
    if getattr(vit.config, "use_mean_pooling", False):  # BEiT, whose final norm is the pooler's
        pooled = tokens[:, 1:].mean(1)
        pooler_norm = getattr(vit.pooler, "layernorm", None)
        return pooled if pooler_norm is None else pooler_norm(pooled)
    return tokens[:, 0] if getattr(embeddings, "cls_token", None) is not None else tokens.mean(1)
