"""Image transformers of Hugging Face's transformers."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import (
    CLIP,
    HALF,
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
    pair,
    patches,
)
from fe_adapter.backbones.weights import load_weights
from fe_adapter.errors import InputError, first_line
from fe_adapter.files import read_json

_log = logging.getLogger("fe_adapter")

NAME = EXTRA = "hf"
REFUSED: dict[str, str] = {
    "SwinModel": WINDOWS,
    "Swinv2Model": WINDOWS,
    "HieraModel": POOLS,
    "SamVisionEncoder": MAPS,
    "SamModel": MAPS,
    "Siglip2VisionModel": PACKS,
    "ViTMAEModel": "it drops and shuffles patches, so that frames do not line up",
    "ViTMAEForPreTraining": "it drops and shuffles patches, so that frames do not line up",
}
# transformers keeps these beside the weights, in preprocessor_config.json; by model_type, for weights that came without
PREPROCESSOR = "preprocessor_config.json"
RESAMPLINGS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; Lanczos is not PyTorch's
STATISTICS = {"clip": CLIP, "siglip": HALF, "vit": HALF, "beit": HALF}
_BLOCKS = ("layers", "encoder.layers", "encoder.layer", "model.layer", "layer")


def describe(model: nn.Module) -> Backbone | None:
    """The image transformer in ``model``, if it is of this library."""
    if not hasattr(model, "config"):
        return None
    for path in ("", "vision_model", "vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip"):
        core = getattr(model, path, None) if path else model
        if not isinstance(core, nn.Module) or not hasattr(core, "embeddings") or not hasattr(core, "config"):
            continue
        if type(core).__name__ in REFUSED:
            raise InputError(f"{type(core).__name__} cannot be adapted: {REFUSED[type(core).__name__]}")
        for blocks in _BLOCKS:
            try:
                found = core.get_submodule(blocks)
            except AttributeError:
                continue
            if isinstance(found, nn.ModuleList):
                return _backbone(core, ".".join(filter(None, (path, blocks))))
    return None


def _backbone(core: Any, blocks_path: str) -> Backbone | None:
    config, embeddings = core.config, core.embeddings
    if not hasattr(config, "patch_size") or not hasattr(config, "image_size"):
        return None
    registers = getattr(embeddings, "register_tokens", None)
    prefix = sum(
        getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding", "distillation_token")
    )
    kind = str(config.model_type).removesuffix("_vision_model")
    mean, std = STATISTICS.get(kind, IMAGENET)
    found = getattr(config, "image_preprocessing", None) or {"mean": mean, "std": std}
    return Backbone(
        vit=core,
        blocks_path=blocks_path,
        embed_dim=config.hidden_size,
        num_prefix_tokens=prefix + (0 if registers is None else registers.shape[1]),
        grid_size=patches(config.image_size, config.patch_size),
        patch_size=pair(config.patch_size),
        preprocessing=Preprocessing(pair(config.image_size), **found),
        frame_features=frame_features,
    )


def frame_features(vit: Any, images: Tensor) -> Tensor:
    tokens = vit(pixel_values=images).last_hidden_state
    embeddings = vit.embeddings
    if hasattr(embeddings, "class_embedding"):  # CLIP leaves its final norm to the pooler
        return vit.post_layernorm(tokens[:, 0])
    if getattr(vit.config, "use_mean_pooling", False):  # BEiT, whose final norm is the pooler's
        pooled = tokens[:, 1:].mean(1)
        pooler_norm = getattr(vit.pooler, "layernorm", None)
        return pooled if pooler_norm is None else pooler_norm(pooled)
    return tokens[:, 0] if getattr(embeddings, "cls_token", None) is not None else tokens.mean(1)


def build(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    """``hf:owner/model``, or ``hf:MODEL_TYPE`` such as ``hf:vit`` for a model from its default config."""
    import transformers

    source = str(path) if path is not None and path.is_dir() else name
    if pretrained or source != name:
        return _with_preprocessing(transformers.AutoModel.from_pretrained(source, **args), name, path)
    if "/" in name:
        config = transformers.AutoConfig.from_pretrained(name, **args)
    else:
        config = transformers.AutoConfig.for_model(name)
        unknown = sorted(key for key in args if not hasattr(config, key))
        if unknown:
            raise InputError(f"the config of hf:{name} has no {unknown[0]!r}")
        config = transformers.AutoConfig.for_model(name, **args)
    model = transformers.AutoModel.from_config(config)
    if path is not None:
        load_weights(model, path, _resampled)
        return _with_preprocessing(model, name, path)
    return model


def _resampled(model: Any, name: str, value: Tensor) -> Tensor | None:
    embeddings: Any = getattr(model, "embeddings", None)
    own = getattr(embeddings, "position_embeddings", None)
    rule = getattr(embeddings, "interpolate_pos_encoding", None)
    if name != "embeddings.position_embeddings" or not isinstance(own, nn.Parameter) or rule is None:
        return None
    if value.dim() != 3 or value.shape[-1] != own.shape[-1]:
        return None
    embeddings.position_embeddings = nn.Parameter(value)  # what the rule reads
    try:
        with torch.no_grad():
            return rule(own.new_empty(own.shape), *pair(model.config.image_size))
    except RuntimeError:  # no square
        return None
    finally:
        embeddings.position_embeddings = own


def _with_preprocessing(model: Any, name: str, path: Path | None) -> nn.Module:
    """Keep what the weights' own ``preprocessor_config.json`` says in the model's config, where `describe` looks.

    The file is beside local weights, or where a hub or its cache has the model of that name.
    """
    from transformers.utils import cached_file

    places = [] if path is None else [path if path.is_dir() else path.parent]
    file: Any = next((place / PREPROCESSOR for place in places if (place / PREPROCESSOR).exists()), None)
    if file is None and "/" in name:
        with contextlib.suppress(OSError):  # there is none, or no network
            file = cached_file(
                name, PREPROCESSOR, local_files_only=path is not None, _raise_exceptions_for_missing_entries=False
            )
    if file is None:
        _log.warning(
            "hf:%s has no %s; mean and std of others of its kind are taken, which is a guess", name, PREPROCESSOR
        )
        return model
    content = read_json(Path(file))
    try:
        found = _preprocessing(content)
        Preprocessing((1, 1), **found)  # which checks it
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{file} does not say how images are prepared: {first_line(error)}") from None
    for config in (model.config, getattr(model.config, "vision_config", None)):
        if config is not None:
            config.image_preprocessing = found
    return model


def _preprocessing(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Preprocessing` by a ``preprocessor_config.json``, of which size is the model's."""
    if content.get("do_flip_channel_order"):
        raise InputError("it asks for BGR, where frames are RGB")
    # transformers normalises (255·x·factor − mean) / std, and we (x − mean) / std
    scale = 255 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255
    normalizes = content.get("do_normalize", True) and "image_mean" in content and "image_std" in content
    mean, std = (content["image_mean"], content["image_std"]) if normalizes else ([0.0] * 3, [1.0] * 3)
    size, crop = content.get("size"), content.get("crop_size")
    shortest: Any = size.get("shortest_edge") if isinstance(size, dict) else size
    height: Any = crop.get("height") if isinstance(crop, dict) else crop
    is_cropped = content.get("do_center_crop") and isinstance(shortest, int) and isinstance(height, int)
    return {
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "interpolation": RESAMPLINGS.get(content.get("resample", 2), "bilinear"),
        "crop": min(1.0, height / shortest) if is_cropped else 1.0,
    }


def _vit_layer(
    self: Any, adapter: Adapter, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    z, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
    x = adapter(self.dropout(z) + hidden_states)
    return self.dropout(self.mlp(self.layernorm_after(x))) + x


def _beit_layer(
    self: Any,
    adapter: Adapter,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    resolution: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Tensor:
    if self.relative_position_bias is not None:
        assert resolution is not None
        window = (resolution[0] // self.patch_size, resolution[1] // self.patch_size)
        bias = self.relative_position_bias(window, interpolate_pos_encoding, dim_size=hidden_states.shape[1])
        attention_mask = bias if attention_mask is None else bias + attention_mask
    z, _ = self.attention(self.layernorm_before(hidden_states), attention_mask=attention_mask, **kwargs)
    x = adapter(self.drop_path(self.lambda_1 * self.dropout(z)) + hidden_states)
    z = self.dropout(self.mlp(self.layernorm_after(x)))
    return self.drop_path(self.lambda_2 * z) + x


def _dino_layer(
    self: Any, adapter: Adapter, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    z, _ = self.attention(self.norm1(hidden_states), attention_mask=attention_mask, **kwargs)
    x = adapter(self.drop_path(self.layer_scale1(z)) + hidden_states)
    return self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))) + x


def _clip_layer(
    self: Any, adapter: Adapter, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    z, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs)
    x = adapter(hidden_states + z)
    return x + self.mlp(self.layer_norm2(x))


FORWARDS: Forwards = {
    ("transformers.models.vit", "ViTLayer"): _vit_layer,
    ("transformers.models.deit", "DeiTLayer"): _vit_layer,
    ("transformers.models.beit", "BeitLayer"): _beit_layer,
    ("transformers.models.dinov2", "Dinov2Layer"): _dino_layer,
    ("transformers.models.dinov2_with_registers", "Dinov2WithRegistersLayer"): _dino_layer,
    ("transformers.models.dinov3_vit", "DINOv3ViTLayer"): _dino_layer,
    ("transformers.models.clip", "CLIPEncoderLayer"): _clip_layer,
    ("transformers.models.siglip", "SiglipEncoderLayer"): _clip_layer,
}


def has_attention_registry(vit: Any) -> bool:
    """Whether ``vit`` takes its attention from transformers' registry, where another can be put."""
    return hasattr(vit, "config") and hasattr(vit.config, "_attn_implementation")


def exchange_attention(vit: Any, name: str, attention: Attention) -> None:
    """Let ``vit`` take ``attention`` until `restore_attention`; it is registered as ``name`` and what it replaces."""
    from transformers import AttentionInterface

    def registered(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))  # (B, heads, L, width) -> (B, L, heads, width)
        return attention(q, k, v, attention_mask, dropout, scaling), None

    name = f"{name}.{vit.config._attn_implementation}"
    AttentionInterface.register(name, registered)
    vit.config._attn_implementation = name


def restore_attention(vit: Any, name: str) -> None:
    """Undo `exchange_attention` of that name."""
    before = str(vit.config._attn_implementation)
    if before.startswith(f"{name}."):
        vit.config._attn_implementation = before.removeprefix(f"{name}.")


def clear_caches(model: nn.Module) -> None:
    """Forget the tensors that transformers' functions keep by size and device: of fake tensors, they are fake."""
    classes = {
        cls for part in model.modules() for cls in type(part).__mro__ if cls.__module__.startswith("transformers.")
    }
    modules = {sys.modules[cls.__module__] for cls in classes}
    for value in (value for where in (*modules, *classes) for value in vars(where).values()):
        function = getattr(value, "__func__", value)  # of a static method
        inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        for cached in (function, *inner):
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
