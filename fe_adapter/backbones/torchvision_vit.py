"""Image transformers of torchvision."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import (
    IMAGENET,
    WINDOWS,
    Adapter,
    Backbone,
    Forwards,
    Preprocessing,
    interpolation_named,
    pair,
    patches,
)
from fe_adapter.backbones.weights import load_weights
from fe_adapter.errors import InputError

NAME, EXTRA = "torchvision", "timm"  # which brings torchvision
REFUSED: dict[str, str] = {"SwinTransformer": WINDOWS}

DEFAULT = {"mean": IMAGENET[0], "std": IMAGENET[1]}  # of all its models, whatever else their weights were trained with


def describe(model: nn.Module) -> Backbone | None:
    """The image transformer in ``model``, if it is of this library."""
    if not all(hasattr(model, name) for name in ("conv_proj", "class_token", "encoder", "hidden_dim")):
        return None
    return Backbone(
        vit=model,
        blocks_path="encoder.layers",
        embed_dim=model.hidden_dim,  # type: ignore[arg-type]
        num_prefix_tokens=1,
        grid_size=patches(model.image_size, model.patch_size),
        patch_size=pair(model.patch_size),
        preprocessing=Preprocessing(pair(model.image_size), **getattr(model, "image_preprocessing", DEFAULT)),
        frame_features=frame_features,
    )


def frame_features(vit: Any, images: Tensor) -> Tensor:
    patches = vit._process_input(images)
    return vit.encoder(torch.cat([vit.class_token.expand(patches.shape[0], -1, -1), patches], dim=1))[:, 0]


def build(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}")
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **args)
    own = models.get_model_weights(name).DEFAULT.transforms()  # what its weights were trained with
    model.image_preprocessing = {
        "mean": tuple(own.mean),
        "std": tuple(own.std),
        "interpolation": interpolation_named(own.interpolation.value),
        "crop": own.crop_size[0] / own.resize_size[0],
    }
    if path is not None:
        load_weights(model, path, _resampled)
    return model


def _resampled(model: Any, name: str, value: Tensor) -> Tensor | None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    if name != "encoder.pos_embedding" or value.dim() != 3 or value.shape[-1] != model.hidden_dim:
        return None
    try:
        return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict({name: value}))[name]
    except ValueError:  # no square
        return None


def _block(self: Any, adapter: Adapter, input: Tensor) -> Tensor:
    z = self.ln_1(input)
    z, _ = self.self_attention(z, z, z, need_weights=False)
    x = adapter(self.dropout(z) + input)
    return x + self.mlp(self.ln_2(x))


FORWARDS: Forwards = {("torchvision.models.vision_transformer", "EncoderBlock"): _block}
