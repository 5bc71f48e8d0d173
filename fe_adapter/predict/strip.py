"""Film strips: a few small pictures of a video, collected while it is read, however long it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 48  # pictures, and half as many at least once there were so many
HEIGHT = 120  # pixels at most


class FilmStrip:
    """Pictures at even distances in time, which double whenever there are too many of them."""

    def __init__(self) -> None:
        self._pictures: list[tuple[float, Tensor]] = []
        self._distance = 0.0

    def add(self, seconds: float, frame: Tensor) -> None:
        """Take a small picture of ``frame``, uint8 ``(3, H, W)``, if one is due."""
        if self._pictures and seconds < self._pictures[-1][0] + self._distance:
            return
        if self._pictures:  # all of one size
            height, width = self.height, self.width
        else:
            height = min(HEIGHT, frame.shape[-2])
            width = max(1, round(frame.shape[-1] * height / frame.shape[-2]))
        small = F.interpolate(frame[None], (height, width), mode="bilinear", antialias=True)[0]
        self._pictures.append((seconds, small.contiguous()))
        if len(self._pictures) == MOST:
            self._distance = 2 * (seconds - self._pictures[0][0]) / (MOST - 1)
            self._pictures = self._pictures[::2]

    @property
    def height(self) -> int:
        return self._pictures[0][1].shape[-2]

    @property
    def width(self) -> int:
        return self._pictures[0][1].shape[-1]

    def nearest(self, times: list[float]) -> Tensor:
        """``(n, 3, height, width)``: the picture that was taken nearest to each of the times, in seconds."""
        taken = torch.tensor([seconds for seconds, _ in self._pictures], dtype=torch.float64)
        return torch.stack([self._pictures[int((taken - time).abs().argmin())][1] for time in times])

    def __len__(self) -> int:
        return len(self._pictures)
