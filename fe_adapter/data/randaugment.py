"""RandAugment (arXiv 1909.13719) on a clip: four operations of magnitude 7 of 10, the same ones on every frame.

Operations, magnitudes and the order in which chance is asked are those of `torchvision.transforms.v2.RandAugment`, to
whose results tests hold these. They are written anew since on one core they take a third of the time, and since on a
GPU they never wait for it: torchvision's copy their matrices and kernels to it as they go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_OPERATIONS = 4
_BINS, _BIN = 31, 21  # magnitudes from nothing to the most there is, and the one taken


class Operation(NamedTuple):
    """One step: which, and how much of it, in the units of its function below."""

    name: str
    magnitude: float


def draw(size: tuple[int, int], generator: torch.Generator) -> tuple[Operation, ...]:
    """The operations that chance chooses for a clip of ``size`` ``(height, width)``."""
    drawn = []
    for _ in range(NUM_OPERATIONS):
        name = _NAMES[int(torch.randint(len(_NAMES), (), generator=generator))]
        most = _MOST.get(name)
        if most is None:
            drawn.append(Operation(name, _UNSIGNED.get(name, 0.0)))
            continue
        side = {"TranslateX": size[1], "TranslateY": size[0]}.get(name, 1)
        magnitude = torch.linspace(0.0, most * side, _BINS)[_BIN].item()
        is_negative = torch.rand((), generator=generator) <= 0.5
        drawn.append(Operation(name, -magnitude if is_negative else magnitude))
    return tuple(drawn)


def augment(clip: Tensor, operations: tuple[Operation, ...]) -> Tensor:
    """``(T, 3, H, W)`` uint8 -> the same, one operation after the other, on the clip's own device."""
    for name, magnitude in operations:
        clip = _FUNCTIONS[name](clip, magnitude)
    return clip


def _shear_x(clip: Tensor, slope: float) -> Tensor:
    """Columns to the left by ``slope`` for every row further down."""
    return _taken_from(clip, lambda x, y: (x + slope * (y + 0.5), y))


def _shear_y(clip: Tensor, slope: float) -> Tensor:
    return _taken_from(clip, lambda x, y: (x, y + slope * (x + 0.5)))


def _rotate(clip: Tensor, degrees: float) -> Tensor:
    """Anticlockwise, around the middle."""
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    middle_y, middle_x = ((side - 1) / 2 for side in clip.shape[-2:])

    def source(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x - middle_x, y - middle_y
        return cos * x - sin * y + middle_x, sin * x + cos * y + middle_y

    return _taken_from(clip, source)


def _taken_from(clip: Tensor, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Each pixel from the place ``source(x, y)``, in pixels: the nearest one; black where there is none."""
    H, W = clip.shape[-2:]
    # in float64, in which devices agree on which pixel is the nearest
    y, x = (torch.arange(n, dtype=torch.float64, device=clip.device) for n in (H, W))
    column, row = (place.round() for place in source(x, y[:, None]))
    is_inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    index = (row.clamp(0, H - 1) * W + column.clamp(0, W - 1)).long().view(1, 1, H * W)
    pixels = clip.flatten(-2)
    return pixels.gather(-1, index.expand_as(pixels)).view_as(clip).mul_(is_inside)


def _translate_x(clip: Tensor, pixels: float) -> Tensor:
    """To the right."""
    return F.pad(clip, (int(pixels), -int(pixels), 0, 0))


def _translate_y(clip: Tensor, pixels: float) -> Tensor:
    return F.pad(clip, (0, 0, int(pixels), -int(pixels)))


def _brightness(clip: Tensor, more: float) -> Tensor:
    return _to_bytes(clip.mul(1 + more))


def _color(clip: Tensor, more: float) -> Tensor:
    """Away from grey, or towards it."""
    return _to_bytes(clip.mul(1 + more).add_(_grey(clip), alpha=-more))


def _contrast(clip: Tensor, more: float) -> Tensor:
    """Away from each frame's mean grey, or towards it."""
    return _to_bytes(clip.mul(1 + more).add_(_grey(clip).mean((-3, -2, -1), keepdim=True), alpha=-more))


def _sharpness(clip: Tensor, more: float) -> Tensor:
    """Away from a blur of 3 by 3, in which the middle counts five times, or towards it; edges stay."""
    x = clip.to(torch.int16)  # holds thirteen times 255
    rows = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    blur = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    blur.add_(x[..., 1:-1, 1:-1], alpha=4)
    result = clip.float()
    inner = result[..., 1:-1, 1:-1]
    inner.add_(blur.float().mul_(1 / 13).round_().sub_(inner), alpha=-more)
    return _to_bytes(result)


def _posterize(clip: Tensor, bits: float) -> Tensor:
    return clip & (256 - 2 ** (8 - int(bits)))


def _solarize(clip: Tensor, threshold: float) -> Tensor:
    """Inverted from ``threshold`` on; an integer, or all pixels would become floats to be compared."""
    return clip ^ (clip >= math.ceil(threshold)).to(torch.uint8).neg_()


def _autocontrast(clip: Tensor, _: float) -> Tensor:
    """Each channel of each frame stretched to all of 0 to 255."""
    low, high = (extreme.float() for extreme in (clip.amin((-2, -1)), clip.amax((-2, -1))))
    is_flat = (low == high)[..., None]
    levels = torch.arange(256.0, device=clip.device)
    stretched = (levels - low[..., None]) / (high - low).mul(1 / 255)[..., None]
    return _looked_up(_to_bytes(torch.where(is_flat, levels, stretched)), clip)


def _equalize(clip: Tensor, _: float) -> Tensor:
    """Each channel of each frame with as many pixels of every level as can be, by Pillow's rule."""
    histogram = _histogram(clip)
    cumulated = histogram.cumsum(-1)
    brightest = histogram.gather(-1, cumulated.argmax(-1, keepdim=True))
    step = (cumulated[..., -1:] - brightest) // 255
    levels = ((cumulated[..., :-1] + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    same = torch.arange(256, device=clip.device)
    return _looked_up(torch.where(step == 0, same, F.pad(levels, (1, 0))).to(torch.uint8), clip)


def _histogram(clip: Tensor) -> Tensor:
    """``(T, 3, 256)`` int64."""
    pixels = clip.flatten(-2).int()
    if clip.device.type != "cpu":  # where `bincount` would wait for the device
        return pixels.new_zeros(*clip.shape[:2], 256).scatter_add_(-1, pixels.long(), torch.ones_like(pixels)).long()
    first = 256 * torch.arange(clip.shape[0] * 3, dtype=torch.int32).view(-1, 3, 1)
    return torch.bincount((pixels + first).view(-1), minlength=256 * first.numel()).view(*clip.shape[:2], 256)


def _looked_up(table: Tensor, clip: Tensor) -> Tensor:
    """What ``table``, ``(T, 3, 256)``, holds for every pixel."""
    return table.gather(-1, clip.flatten(-2).long()).view_as(clip)


def _grey(clip: Tensor) -> Tensor:
    """``(T, 1, H, W)`` float32, whole numbers."""
    red, green, blue = clip.unbind(-3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(-3)


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


_FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda clip, _: clip,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
_NAMES = tuple(_FUNCTIONS)  # in the order in which chance counts them
_MOST = {  # of what goes both ways; of translations in shares of the side
    "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150.0 / 331.0, "TranslateY": 150.0 / 331.0, "Rotate": 30.0,
    "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9,
}  # fmt: skip
_UNSIGNED = {"Posterize": 8 - round(4 * _BIN / (_BINS - 1)), "Solarize": 255 * (1 - _BIN / (_BINS - 1))}
