"""Clips to the size a backbone takes: the same crop, flip and augmentation for every frame of a clip.

uint8 in, uint8 out; mean and std are the classifier's business.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.errors import InputError

_GREY = 128


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
        (height, width), (H, W) = self.size, clip.shape[-2:]
        scale = max(height / H, width / W) / self.crop
        h, w = (max(1, min(most, round(side / scale))) for most, side in ((H, height), (W, width)))
        return _resized(clip, (H - h) // 2, (W - w) // 2, h, w, self.size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """A random part of the frame, maybe mirrored, maybe augmented by RandAugment.

    Args:
        size: ``(height, width)`` of the result.
        scale: share of the frame's area that is kept; on aligned faces less than half cuts the face out.
        ratio: width to height of the part, before it is scaled to ``size``.
        flip: mirror half of the clips.
        randaugment: four operations of magnitude 7 of 10; needs torchvision.
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
        generator = torch.Generator().manual_seed(seed)
        H, W = clip.shape[-2:]
        top, left, h, w = self._part(H, W, generator)
        clip = _resized(clip, top, left, h, w, self.size, self.interpolation)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            clip = clip.flip(-1)
        if self.randaugment:
            clip = _by_torchvision(clip, seed, "RandAugment", num_ops=4, magnitude=21, num_magnitude_bins=31)
        return _by_torchvision(clip, seed, "RandomErasing", p=self.erase, value=_GREY) if self.erase else clip

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


def _resized(clip: Tensor, top: int, left: int, h: int, w: int, size: tuple[int, int], interpolation: str) -> Tensor:
    part = clip[..., top : top + h, left : left + w]
    if (h, w) == tuple(size):
        return part.contiguous()
    if interpolation == "nearest":
        return F.interpolate(part.contiguous(), size, mode="nearest-exact")
    return F.interpolate(part.contiguous(), size, mode=interpolation, antialias=True, align_corners=False)


def _by_torchvision(clip: Tensor, seed: int, name: str, **options: float) -> Tensor:
    """What a transform of torchvision's makes of a clip, all frames alike."""
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise InputError(f"{name} needs torchvision; pip install 'fe-adapter[timm]' or turn it off") from None
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        return getattr(v2, name)(**options)(clip)
