"""`ClipRecipe`: the settings of a run that are about its videos."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from fe_adapter.checks import check_choice
from fe_adapter.data.annotations import Cutting
from fe_adapter.data.datasets import ON_ERROR, VideoDataset, check_val_fraction, open_dataset
from fe_adapter.data.layouts import Where
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.transforms import EvalTransform, TrainTransform
from fe_adapter.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """Which videos a run sees, which of their frames make a clip, and what training does to it.

    Args:
        num_frames: frames T of a clip.
        sampling: "uniform", one of each of T equal parts of the video; "stride", every stride-th; or "dense", in a row.
        stride: frames from one to the next, for "stride".
        val_fraction: share of every class held out for validation where the data has no such split, in (0, 1).
        on_error: at unreadable videos "fail", naming them, or "skip" them, for which every frame is decoded once first.
        flip: in training, mirror half of the clips.
        randaugment: in training, augment clips by RandAugment.
        random_erasing: in training, the share of clips of which a rectangle is made grey.
        in_memory: decode a video once and keep all its frames.
        window: of videos in which ranges are marked, the seconds of a clip that is cut from them.
        background: likewise, the class of what lies between ranges; by default (None) it is left out.
        split_by: likewise, "time": the last of what is marked of a class in a video is for validation; or "video".
        tier: of ELAN's files that have several.
        fold: of a published data set that has several, such as dfew:ROOT; counted from 1.
        frames_folder: of the clips, below the root of a published data set, where the copy calls it by another name.
        lists_folder: of the split lists, likewise.
        soft_labels: train on shares of people's votes: a CSV's column for every class, or DFEW's annotation.xlsx.
        select_on_test: validate on the test split, as published numbers often do; the best epoch is then no test.

    Raises:
        InputError: a value is out of range.
    """

    num_frames: int = 16
    sampling: str = "uniform"
    stride: int = 4
    val_fraction: float = 0.2
    on_error: str = "fail"
    flip: bool = True
    randaugment: bool = True
    random_erasing: float = 0.0
    in_memory: bool = False
    window: float = 1.0
    background: str | None = None
    split_by: str = "time"
    tier: str | None = None
    fold: int | None = None
    frames_folder: str | None = None
    lists_folder: str | None = None
    soft_labels: bool = False
    select_on_test: bool = False

    def __post_init__(self) -> None:
        self.sampler()
        self.cutting()
        check_val_fraction(self.val_fraction)
        if not 0 <= self.random_erasing <= 1:
            raise InputError(f"random_erasing={self.random_erasing} is outside [0, 1]")
        check_choice("on_error", self.on_error, ON_ERROR)

    def sampler(self) -> FrameSampler:
        """Which frames make a clip."""
        return FrameSampler(self.num_frames, self.sampling, self.stride)

    def cutting(self) -> Cutting:
        """How ranges that are marked in videos become clips."""
        return Cutting(self.window, self.background, self.split_by, self.tier)

    def open(
        self,
        data: str | os.PathLike[str],
        split: str | None,
        *,
        class_names: Sequence[str] | None = None,
        is_training: bool = False,
        seed: int = 0,
    ) -> VideoDataset:
        """The clips of a split of ``data``, as of `open_dataset`; frames as they are, until a transform is set."""
        return open_dataset(
            data,
            split,
            val_fraction=self.val_fraction,
            fold=self.fold,
            where=Where(self.frames_folder, self.lists_folder),
            select_on_test=self.select_on_test,
            soft_labels=self.soft_labels,
            cutting=self.cutting(),
            class_names=class_names,
            sampler=self.sampler(),
            is_training=is_training,
            seed=seed,
            on_error=self.on_error,
            in_memory=self.in_memory,
        )

    def transform(
        self, size: tuple[int, int], interpolation: str, crop: float, is_training: bool = False
    ) -> EvalTransform | TrainTransform:
        """What makes of frames what a backbone expects (`fe_adapter.backbones.Preprocessing`)."""
        if is_training:
            return TrainTransform(
                size,
                flip=self.flip,
                randaugment=self.randaugment,
                interpolation=interpolation,
                erase=self.random_erasing,
            )
        return EvalTransform(size, interpolation, crop)


def summary_of(train_set: VideoDataset, val_set: VideoDataset) -> str:
    """One line for people: how many clips there are, where those to validate on come from, and what is left out."""
    share = train_set.val_fraction
    people = {clip.subject for clip in val_set.clips}
    kind = "the people" if None not in people else "every class"
    if val_set.origin.get("split_by"):
        kind = {"time": "what is marked of every class, its last", "video": "the videos"}[val_set.origin["split_by"]]
    origin = f"{share:g} of {kind}, held out" if share is not None else f"the data's {val_set.split_name!r}"
    line = f"{len(train_set)} clips to train on, {len(val_set)} to validate ({origin})"
    skipped = {*train_set.skipped, *val_set.skipped}
    left_out = f", {len(skipped)} unreadable left out" if skipped else ""
    faceless = {*train_set.faceless, *val_set.faceless}
    left_out += f", {len(faceless)} without a face left out" if faceless else ""
    return f"{line}, {len(train_set.class_names)} classes{left_out}"
