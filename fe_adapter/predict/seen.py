"""What of a video is kept for its pictures while it is read: film strips, and where people were."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.data.faces import Face

MOST, HEIGHT = 48, 120  # pictures, and half as many at least once there were so many; their pixels, at most
MOST_OF_FACE, FACE_HEIGHT = 24, 80  # of each person, of whom there may be hundreds


@dataclasses.dataclass
class Seen:
    """Film strips of everybody, by id, of whole frames under None; and, where they are wanted, everybody's boxes."""

    strips: dict[int | None, FilmStrip] = dataclasses.field(default_factory=dict)
    tracks: Tracks | None = None


class Tracks:
    """Every face in every frame, in a few bytes each."""

    def __init__(self) -> None:
        self._frames, self._people, self._boxes = array("q"), array("q"), array("f")

    def add(self, frame: int, faces: Sequence[Face]) -> None:
        """Keep the faces in the frame of that number, which is later than those before."""
        for face in faces:
            self._frames.append(frame)
            self._people.append(face.id)
            self._boxes.extend(face.box)

    def at(self, frame: int) -> dict[int, tuple[float, ...]]:
        """The boxes in a frame, x, y, width and height, by person."""
        first, end = (int(np.searchsorted(self._frames, frame, side)) for side in ("left", "right"))
        return {self._people[i]: tuple(self._boxes[4 * i : 4 * i + 4]) for i in range(first, end)}


class FilmStrip:
    """Pictures at even distances in time, which double whenever there are too many of them.

    Args:
        most: pictures.
        height: of each, in pixels; smaller ones stay as they are.
    """

    def __init__(self, most: int = MOST, height: int = HEIGHT) -> None:
        self._most, self._height = most, height
        self._pictures: list[tuple[float, Tensor]] = []
        self._distance = 0.0

    def add(self, seconds: float, frame: Tensor) -> None:
        """Take a small picture of ``frame``, uint8 ``(3, H, W)``, if one is due."""
        if self._pictures and seconds < self._pictures[-1][0] + self._distance:
            return
        if self._pictures:  # all of one size
            height, width = self.height, self.width
        else:
            height = min(self._height, frame.shape[-2])
            width = max(1, round(frame.shape[-1] * height / frame.shape[-2]))
        small = F.interpolate(frame[None], (height, width), mode="bilinear", antialias=True)[0]
        self._pictures.append((seconds, small.contiguous()))
        if len(self._pictures) == self._most:
            self._distance = 2 * (seconds - self._pictures[0][0]) / (self._most - 1)
            self._pictures = self._pictures[::2]

    @property
    def height(self) -> int:
        return self._pictures[0][1].shape[-2]

    @property
    def width(self) -> int:
        return self._pictures[0][1].shape[-1]

    def nearest(self, times: list[float]) -> Tensor:
        """``(n, 3, height, width)``: the picture that was taken nearest to each of the times, in seconds."""
        pictures = list(self._pictures)  # which a thread may still take
        taken = torch.tensor([seconds for seconds, _ in pictures], dtype=torch.float64)
        return torch.stack([pictures[int((taken - time).abs().argmin())][1] for time in times])

    def __len__(self) -> int:
        return len(self._pictures)
