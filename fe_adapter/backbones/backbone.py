"""What an image transformer looks like from here, whichever library it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from fe_adapter.checks import check_choice
from fe_adapter.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Adapter = Callable[[Tensor], Tensor]
# (q, k, v, bias, dropout, scale), q, k and v (B, L, heads, width) -> the same shape
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, float | None], Tensor]
# by module and class of a block: its forward with an adapter in front of the MLP, (block, adapter, *args, **kwargs)
Forwards = dict[tuple[str, str], Callable[..., Tensor]]


# why some models of a library cannot be adapted
WINDOWS = "its windows and stages leave no one grid of tokens"
POOLS = "it pools tokens between its stages"
MAPS = "its blocks take a (B, H, W, D) map, not (B, L, D) tokens"
PACKS = "it packs images of different sizes, so that tokens have no one grid"

MAX_MEAN, MIN_STD, MAX_STD, MIN_CROP = 1e3, 1e-5, 1e3, 0.05  # beyond what images are normalised by
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of an image.

    Args:
        size: ``(height, width)`` in pixels.
        mean: of RGB in [0, 1].
        std: of RGB in [0, 1].
        interpolation: how images are scaled: "bilinear", "bicubic" or "nearest".
        crop: share of an image's shorter side that is kept in testing.

    Raises:
        InputError: a value that no weights were trained with: a std of 0, say.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for name, low, high in (("mean", -MAX_MEAN, MAX_MEAN), ("std", MIN_STD, MAX_STD)):
            values = getattr(self, name)
            if len(values) != 3 or not all(low <= value <= high for value in values):
                raise InputError(f"{name}={values} is not three numbers from {low:g} to {high:g}")
        if not MIN_CROP <= self.crop <= 1:
            raise InputError(f"crop={self.crop} is not from {MIN_CROP} to 1")


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


class Library(Protocol):
    """What a module of this folder says of one library of image transformers.

    Args:
        NAME: in front of the colon of a backbone's name.
        EXTRA: of ours that installs the library.
        REFUSED: classes that cannot be adapted, each with the reason.
        FORWARDS: of its blocks, with an adapter in front of the MLP.
    """

    NAME: str
    EXTRA: str
    REFUSED: dict[str, str]
    FORWARDS: Forwards

    def describe(self, model: nn.Module) -> Backbone | None:
        """The image transformer in ``model``, if it is of this library."""

    def build(self, name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
        """The model of that name: with pretrained weights, with those at ``path``, or with random ones."""


# what PyTorch puts around a module, by class, and where the module is in it
WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of what `WRAPPERS` put around it."""
    while (inner := WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    return module


def plain_name(name: str) -> str:
    """A parameter's name as it is where nothing in the model is compiled."""
    return name.replace("_orig_mod.", "")


def get_blocks(model: nn.Module, path: str) -> list[nn.Module]:
    """The blocks at the attribute ``path`` of ``model``, each without what `WRAPPERS` put around it.

    Raises:
        InputError: there is nothing at the path, or no sequence of modules.
    """
    try:
        blocks = unwrapped(unwrapped(model).get_submodule(path))
    except AttributeError:
        raise InputError(f"{type(model).__name__} has no {path!r}") from None
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
        raise InputError(f"{path!r} of {type(model).__name__} is no list of blocks")
    return [unwrapped(block) for block in blocks]


def interpolation_named(name: Any) -> str:
    """One of `INTERPOLATIONS` for what a library calls its own; the sharper of two that could be meant."""
    name = str(name).lower()
    return next((known for known in INTERPOLATIONS if known in name), "bicubic")


def pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))


def patches(size: Any, patch: Any) -> tuple[int, int]:
    (height, width), (patch_height, patch_width) = pair(size), pair(patch)
    return height // patch_height, width // patch_width
