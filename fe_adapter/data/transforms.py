"""Clips to the size a backbone takes: the same crop, flip and augmentation for every frame of a clip.

uint8 in, uint8 out; mean and std are the classifier's business. A transform is two steps: `cut` draws everything that
is left to chance and cuts a part out of the frames, and `finish` does the rest, on whatever device the part is.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.data import randaugment
from fe_adapter.data.sampling import derive_seed
from fe_adapter.errors import InputError

MAX_SENT = 4  # pixels of a part to one of the result, up to which a part is scaled on the device and not before


@dataclasses.dataclass(frozen=True)
class Edit:
    """What is still to be done to a part of a clip, all of it decided.

    Args:
        size: ``(height, width)`` of the result.
        interpolation: as of `fe_adapter.backbones.Preprocessing`.
        flip: mirror it.
        operations: RandAugment's.
        erased: top, left, height and width of a rectangle that is made grey in all frames.
    """

    size: tuple[int, int]
    interpolation: str
    flip: bool = False
    operations: tuple[randaugment.Operation, ...] = ()
    erased: tuple[int, int, int, int] | None = None


_GREY = 128
_ERASING = 1  # apart from what else is drawn by the seed of a clip


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Scale until the shorter side fits, and cut out the middle.

    Args:
        size: ``(height, width)`` of the result.
        interpolation: as of `fe_adapter.backbones.Preprocessing`.
        crop: share of what fits that is kept.
    """

    size: tuple[int, int]
    interpolation: str = "bilinear"
    crop: float = 1.0

    def __call__(self, clip: Tensor, seed: int = 0) -> Tensor:
        """``(T, 3, H, W)`` uint8 -> ``(T, 3, height, width)`` uint8; ``seed`` changes nothing."""
        return finish(*self.cut(clip, seed))

    def cut(self, clip: Tensor, seed: int = 0) -> tuple[Tensor, Edit]:
        """The middle of the clip, and that it is to be scaled."""
        (height, width), (H, W) = self.size, clip.shape[-2:]
        scale = max(height / H, width / W) / self.crop
        h, w = (max(1, min(most, round(side / scale))) for most, side in ((H, height), (W, width)))
        top, left = (H - h) // 2, (W - w) // 2
        return clip[..., top : top + h, left : left + w], Edit(self.size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """A random part of the frame, maybe mirrored, maybe augmented by RandAugment.

    Args:
        size: ``(height, width)`` of the result.
        scale: share of the frame's area that is kept; on aligned faces less than half cuts the face out.
        ratio: width to height of the part, before it is scaled to ``size``.
        flip: mirror half of the clips.
        randaugment: four operations of magnitude 7 of 10 (`fe_adapter.data.randaugment`).
        interpolation: as of `EvalTransform`.
        erase: share of the clips of which a rectangle is made grey, in all frames; needs torchvision.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    randaugment: bool = True
    interpolation: str = "bilinear"
    erase: float = 0.0

    def __call__(self, clip: Tensor, seed: int) -> Tensor:
        """``(T, 3, H, W)`` uint8 -> ``(T, 3, height, width)`` uint8, a function of ``clip`` and ``seed`` alone."""
        return finish(*self.cut(clip, seed))

    def cut(self, clip: Tensor, seed: int) -> tuple[Tensor, Edit]:
        """The random part, and what ``seed`` decides about it."""
        generator = torch.Generator().manual_seed(seed)
        H, W = clip.shape[-2:]
        top, left, h, w = self._part(H, W, generator)
        flip = self.flip and bool(torch.rand((), generator=generator) < 0.5)
        operations = randaugment.draw(self.size, generator.manual_seed(seed)) if self.randaugment else ()
        erased = _draw_erased(self.size, self.erase, seed) if self.erase else None
        return clip[..., top : top + h, left : left + w], Edit(self.size, self.interpolation, flip, operations, erased)

    def _part(self, H: int, W: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):  # as torchvision's RandomResizedCrop
            u = torch.rand(4, generator=generator).tolist()
            area = H * W * (self.scale[0] + u[0] * (self.scale[1] - self.scale[0]))
            low, high = (math.log(r) for r in self.ratio)
            ratio = math.exp(low + u[1] * (high - low))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= H and 0 < w <= W:
                return int(u[2] * (H - h + 1)), int(u[3] * (W - w + 1)), h, w
        return 0, 0, H, W


def finish(part: Tensor, edit: Edit) -> Tensor:
    """``(T, 3, h, w)`` uint8 -> ``(T, 3, height, width)`` uint8, on the device of ``part``, without waiting for it.

    Scaled on a GPU, a few pixels in a hundred are off by a level from what a CPU makes; all else is the same.
    """
    clip = _resized(part, edit.size, edit.interpolation)
    clip = randaugment.augment(clip.flip(-1) if edit.flip else clip, edit.operations)
    if edit.erased is None:
        return clip
    top, left, height, width = edit.erased
    clip = clip.clone()  # it may be the frames themselves, which are kept
    clip[..., top : top + height, left : left + width] = _GREY
    return clip


def compact(part: Tensor, edit: Edit) -> Tensor:
    """``part`` as it is sent to another device: of many pixels already scaled, so that it is never large."""
    height, width = edit.size
    if part[0, 0].numel() > MAX_SENT * height * width:
        return _resized(part, edit.size, edit.interpolation)
    return part.contiguous(memory_format=torch.channels_last)  # as it was decoded, so that it is copied by rows


def _resized(part: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    if part.shape[-2:] == tuple(size):
        return part.contiguous()
    if interpolation == "nearest":
        return F.interpolate(part.contiguous(), size, mode="nearest-exact")
    if part.device.type == "cpu":
        return F.interpolate(part, size, mode=interpolation, antialias=True, align_corners=False).contiguous()
    return _resized_in_float(part, size, interpolation)


def _resized_in_float(part: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """As a CPU scales integers, which few other devices do: columns first, whole numbers between the two passes."""
    for to in ((part.shape[-2], size[1]), size):
        scaled = F.interpolate(part.float(), to, mode=interpolation, antialias=True, align_corners=False)
        part = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return part.contiguous()


def _draw_erased(size: tuple[int, int], share: float, seed: int) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of what is erased from a frame, as torchvision draws it, or None."""
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise InputError("random erasing needs torchvision; pip install 'fe-adapter[timm]' or turn it off") from None
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(derive_seed(seed, _ERASING))
        if torch.rand(()) >= share:
            return None
        drawn = v2.RandomErasing(p=1).make_params([torch.empty(3, *size)])
    return drawn["i"], drawn["j"], drawn["h"], drawn["w"]
