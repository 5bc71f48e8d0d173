"""One forward of a backbone: whether it makes of a frame what adapters and classifier need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import Backbone, get_blocks
from fe_adapter.errors import InputError, first_line


class _Frames(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vit, self._features = backbone.vit, backbone.frame_features

    def forward(self, images: Tensor) -> Tensor:
        return self._features(self.vit, images)


def check_frames(backbone: Backbone) -> None:
    """Raise `InputError` unless ``backbone`` takes frames ``(n, 3, h, w)``, gives its blocks tokens ``(n, P + H·W, D)``
    and makes features ``(n, D)``.

    Video models, models of text and layout, and those that add tokens on their way show here. It runs on the meta
    device, where nothing is computed; a model that asks for values on its way (``.item()``), on its own.
    """
    if backbone.preprocessing is None:
        return
    module, kind = _Frames(backbone), type(backbone.vit).__name__
    size = (2, 3, *backbone.preprocessing.size)
    shapes: list[tuple[int, ...]] = []

    def see(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple((args or tuple(kwargs.values()))[0].shape))

    path = backbone.blocks_path.split(".")
    block = next((b for i in range(len(path)) for b in _blocks(backbone.vit, ".".join(path[i:]))[:1]), None)
    if block is None:
        raise InputError(f"{kind} has no blocks")
    handle = block.register_forward_pre_hook(see, prepend=True, with_kwargs=True)
    try:
        features = _run(module, size, torch.device("meta"))
    except Exception as error:  # a library may raise anything
        shapes.clear()
        try:
            features = _run(module, size, next(module.parameters()).device)
        except Exception:
            raise InputError(f"{kind} makes no features of frames (n, 3, h, w): {first_line(error)}") from None
    finally:
        handle.remove()
    H, W = backbone.grid_size
    tokens = (2, backbone.num_prefix_tokens + H * W, backbone.embed_dim)
    if shapes[:1] != [tokens]:
        raise InputError(
            f"the blocks of {kind} are given {shapes[0] if shapes else 'nothing'} for two frames, not {tokens}: "
            f"{backbone.num_prefix_tokens} tokens before {H}x{W} patches"
        )
    if tuple(features.shape) != (2, backbone.embed_dim):
        raise InputError(f"{kind} makes {tuple(features.shape)} of two frames, not (2, {backbone.embed_dim})")


def _run(module: _Frames, size: tuple[int, ...], device: torch.device) -> Tensor:
    """The features of black frames on ``device``, the meta one or that of ``module``, which is left as it is."""
    is_meta = device.type == "meta"
    values: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        values[name] = torch.empty_like(parameter, device=device) if is_meta else parameter
    for name, buffer in module.named_buffers(remove_duplicate=False):  # which a forward may change
        values[name] = torch.empty_like(buffer, device=device) if is_meta else buffer.clone()
    images = torch.zeros(size, dtype=next(module.parameters()).dtype, device=device)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        return torch.func.functional_call(module, values, (images,))


def _blocks(vit: nn.Module, path: str) -> list[nn.Module]:
    try:
        return get_blocks(vit, path)
    except InputError:
        return []
