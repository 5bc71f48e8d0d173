"""Several views of every video, whose probabilities are averaged: clips along its time, crops along its longer side."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fe_adapter.checks import MAX_FRAMES, check_count
from fe_adapter.data.datasets import VideoDataset
from fe_adapter.errors import InputError

MAX_VIEWS = 100


@dataclasses.dataclass(frozen=True)
class Views:
    """How a video is looked at in a test: ``T × clips × crops``.

    Args:
        num_frames: T of a clip.
        clips: along the time of the video.
        crops: of each, along the longer side of its frames.

    Raises:
        InputError: a number is out of range.
    """

    num_frames: int = 16
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        check_count("num_frames", self.num_frames, 1, MAX_FRAMES)
        check_count("clips", self.clips, 1, MAX_VIEWS)
        check_count("crops", self.crops, 1, MAX_VIEWS)

    @classmethod
    def read(cls, text: str) -> Views:
        """Views as they are written, ``16x2x2``.

        Raises:
            InputError: ``text`` is nothing of the kind.
        """
        match = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})[x×]([0-9]{1,6})", text)
        if match is None:
            raise InputError(f"{text!r} is no FRAMESxCLIPSxCROPS such as 16x1x1 or 16x2x2")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.clips}x{self.crops}"


class MultiView(Dataset[dict[str, Any]]):
    """A data set whose items are the views of every video of another one, video by video.

    `fe_adapter.evaluate.evaluate` averages the probabilities of the ``num_views`` items of each.

    Args:
        dataset: of whole videos, without chance, and with its transform set.
        views: how many clips and crops; the number of frames is the data set's own.
    """

    def __init__(self, dataset: VideoDataset, views: Views) -> None:
        self._videos, self._views = dataset, views
        self.num_views = views.clips * views.crops
        self.class_names, self.face_recipe = dataset.class_names, dataset.face_recipe
        self.labels = [label for label in dataset.labels for _ in range(self.num_views)]
        self.paths = [path for path in dataset.paths for _ in range(self.num_views)]
        self.sampler, self.clip_seconds = dataset.sampler, dataset.clip_seconds
        self.transform: Any = dataset.transform

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: there is no chance in views."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, view = divmod(index, self.num_views)
        clip, crop = divmod(view, self._views.crops)
        frames = self._videos.frames(video, view=(clip, self._views.clips))
        if self.transform is not None:
            frames = self.transform(_part(frames, self.transform.size, crop, self._views.crops), 0)
        return {"video": frames, "label": self.labels[index], "path": self.paths[index], "index": index}


def _part(frames: Tensor, size: tuple[int, int], number: int, count: int) -> Tensor:
    """The largest part of ``(T, 3, H, W)`` of the shape of ``size``: of ``count`` ones along the longer side, spread
    from edge to edge, that of this number; a single one is the middle."""
    (height, width), (H, W) = size, frames.shape[-2:]
    h, w = min(H, round(W * height / width)), min(W, round(H * width / height))
    share = 0.5 if count == 1 else number / (count - 1)
    top, left = round((H - h) * share), round((W - w) * share)
    return frames[..., top : top + max(1, h), left : left + max(1, w)]
