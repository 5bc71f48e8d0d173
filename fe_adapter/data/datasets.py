"""Labelled videos: a folder for every class, or a CSV file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from fe_adapter.checks import check_choice
from fe_adapter.data.annotations import Cutting
from fe_adapter.data.faces.clips import ClipFaces
from fe_adapter.data.faces.face import FaceRecipe
from fe_adapter.data.layouts import Where
from fe_adapter.data.listing import (
    SPLITS,
    Clip,
    held_out,
    list_csv,
    list_folder,
    natural,
)
from fe_adapter.data.reading import check_frames, probe, read_frames
from fe_adapter.data.sampling import FrameSampler, derive_seed
from fe_adapter.data.sources import read_source
from fe_adapter.data.transforms import EvalTransform, compact
from fe_adapter.data.video import VideoInfo
from fe_adapter.data.votes import shares
from fe_adapter.errors import InputError

_log = logging.getLogger("fe_adapter")
ON_ERROR = ("fail", "skip")


class VideoDataset(Dataset[dict[str, Any]]):
    """Clips as tensors. Every file is looked at first (its index, its first frame): most broken ones are found there.

    Items are ``{"video": uint8 (T, 3, h, w), "label": int, "path": str, "index": int}``, and with soft labels
    ``"target"``, float32 ``(C,)`` shares. What chance does to an item is
    a function of the seed, the epoch and its index alone.

    Args:
        clips: files and class names.
        class_names: classes in the order of the labels; None is the classes found, sorted.
        sampler: which frames.
        transform: ``(clip, seed) -> clip``; None leaves frames as they are. It is an attribute, and may be set later.
        is_training: sample frames at random.
        seed: of frames and transforms.
        on_error: "fail" at unreadable files, naming them, or "skip": decode every frame of every file once, log each
            file that does not decode whole, and leave it out.
        in_memory: decode a video once and keep all its frames (3·H·W bytes each), for small data; without workers.
        source: what the clips came from, for messages.

    Raises:
        InputError: unreadable files; no clips; one class only; a class that is not in ``class_names``.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        class_names: Sequence[str] | None = None,
        sampler: FrameSampler,
        transform: Callable[[Tensor, int], Tensor] | None = None,
        is_training: bool = False,
        seed: int = 0,
        on_error: str = "fail",
        in_memory: bool = False,
        source: str = "the data",
    ) -> None:
        check_choice("on_error", on_error, ON_ERROR)
        if not clips:
            raise InputError(f"{source} holds no videos")
        found = sorted({clip.class_name for clip in clips}, key=natural)
        self.class_names = tuple(found if class_names is None else class_names)
        unknown = [name for name in found if name not in self.class_names]
        if unknown:
            raise InputError(f"{source} has the unknown class {unknown[0]!r}; known are {', '.join(self.class_names)}")
        if len(self.class_names) < 2:
            raise InputError(f"{source} has the one class {self.class_names[0]!r}; a classifier needs two or more")
        self.source = source
        self.infos, self.skipped = _probe_all(list(dict.fromkeys(clip.path for clip in clips)), on_error, source)
        self._hold([clip for clip in clips if clip.path in self.infos])
        if not self.clips:
            raise InputError(f"{source} holds no readable videos")
        lost = [name for name in found if self.class_names.index(name) not in self.labels]
        if lost:
            raise InputError(f"{source} has no readable video of the class {lost[0]!r}")
        self.faces: ClipFaces | None = None  # what is cut out of frames, as `crop_to_faces` sets it
        self.faceless: list[str] = []  # clips that it left out
        self.sampler, self.transform = sampler, transform
        self.split_name: str | None = None  # as the data calls the split that this is, where it has splits
        self.val_fraction: float | None = None  # the share held out, where `open_dataset` held one out
        self.origin: dict[str, Any] = {}  # published data set, fold, and whether "val" is its test split, likewise
        self._is_training, self._seed, self._epoch = is_training, seed, 0
        self._frames: dict[str, Tensor] | None = {} if in_memory else None

    def set_epoch(self, epoch: int) -> None:
        """Other frames and other augmentation, in training; call before making the epoch's loader."""
        self._epoch = epoch

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in the items: frames drawn at random, or a transform that is no `EvalTransform`."""
        return self._is_training or not isinstance(self.transform, (EvalTransform, type(None)))

    @property
    def in_memory(self) -> bool:
        """Whether the frames of a video are kept once they are decoded."""
        return self._frames is not None

    @property
    def face_recipe(self) -> FaceRecipe | None:
        """Which faces are cut out of the frames, and how; None where none are."""
        return None if self.faces is None else self.faces.recipe

    @property
    def clip_seconds(self) -> float:
        """Median time that a clip spans in its video, in seconds."""
        return float(np.median([self.sampler.seconds(self.infos[clip.path], clip.window) for clip in self.clips]))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, seed = self._untransformed(index)
        return item if self.transform is None else item | {"video": self.transform(item["video"], seed)}

    def unfinished(self, index: int) -> dict[str, Any]:
        """The item, but for what `transforms.finish` has to do to ``video`` by the item's ``edit``, on any device.

        There is no ``edit`` where the transform has no `cut`: then nothing is left to do.
        """
        cut = getattr(self.transform, "cut", None)
        if cut is None:
            return self[index]
        item, seed = self._untransformed(index)
        part, edit = cut(item["video"], seed)
        return item | {"video": compact(part, edit), "edit": edit}

    def frames(self, index: int, random: np.random.Generator | None = None, view: tuple[int, int] = (0, 1)) -> Tensor:
        """The frames ``(T, 3, H, W)`` of a clip as they are in the video, or the faces cut out of them.

        Options as of `FrameSampler`.
        """
        clip = self.clips[index]
        info = self.infos[clip.path]
        chosen = self.sampler(info, random, clip.window, view)
        if self.faces is None:
            return self._read(info, chosen)
        chosen, places = self.faces.nearest(index, info, chosen)
        return self.faces.cut(index, self._read(info, chosen), places)

    def keep(self, indices: Sequence[int], reason: str) -> None:
        """Leave out all other clips, of which the ``reason`` is.

        Raises:
            InputError: no clip is left, or none of some class.
        """
        before, chosen = set(self.labels), [self.clips[i] for i in indices]
        lost = before - {self.class_names.index(clip.class_name) for clip in chosen}
        if lost:
            raise InputError(f"{self.source} has only clips of the class {self.class_names[min(lost)]!r} {reason}")
        self._hold(chosen)

    def _hold(self, clips: list[Clip]) -> None:
        """Be of these clips."""
        index = {name: i for i, name in enumerate(self.class_names)}
        self.clips = clips
        self.paths = [clip.name for clip in clips]
        self.labels = [index[clip.class_name] for clip in clips]
        self.targets = shares(clips, self.class_names)  # (n, C), or None without soft labels

    def _untransformed(self, index: int) -> tuple[dict[str, Any], int]:
        """The item with its frames as they are, and the seed of what chance does to it."""
        seed = derive_seed(self._seed, self._epoch, index)
        video = self.frames(index, np.random.default_rng(seed) if self._is_training else None)
        item = {"video": video, "label": self.labels[index], "path": self.paths[index], "index": index}
        return item if self.targets is None else item | {"target": self.targets[index]}, seed

    def _read(self, info: VideoInfo, indices: list[int]) -> Tensor:
        if self._frames is None:
            return read_frames(info, indices)
        if info.path not in self._frames:
            self._frames[info.path] = read_frames(info)
        return self._frames[info.path][indices]


class VideoFolder(VideoDataset):
    """Videos in a folder for every class: ``root/CLASS/any/name.mp4``. Options as of `VideoDataset`."""

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(list_folder(Path(root)), source=str(root), **options)


class VideoCSV(VideoDataset):
    """Videos listed in a CSV file with the columns ``path`` and ``label``. Options as of `VideoDataset`."""

    def __init__(self, file: str | os.PathLike[str], split: str | None = None, **options: Any) -> None:
        clips = [clip for clip, own in list_csv(Path(file)) if split is None or own == split]
        super().__init__(clips, source=str(file), **options)


def open_dataset(
    data: str | os.PathLike[str],
    split: str | None = None,
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    fold: int | None = None,
    where: Where | None = None,
    select_on_test: bool = False,
    soft_labels: bool = False,
    cutting: Cutting | None = None,
    **options: Any,
) -> VideoDataset:
    """A data set by its path, a folder per class, a folder of such folders by split, a CSV or annotations; or by name.

    Where the data has its own splits (folders ``train``, ``val``, ``test``, or the CSV's column ``split``) they are
    used. Where it has no validation split, a stratified share of the training videos is one, or, where the data set
    says who is seen, a share of the people; a test split is used for it only if that is asked for.

    Args:
        data: folder, CSV file, or ``NAME:ROOT`` of a published data set (`fe_adapter.data.layouts`).
        split: "train", "val" or "test"; None is all of data without splits, and "test" (else "val") of data with them.
        val_fraction: share of every class that is held out where there is no validation split, in (0, 1).
        split_seed: chooses that share.
        fold: of a published data set that has several.
        where: its folders, where they have other names than the published ones.
        select_on_test: validate on the test split, as published numbers often do; what is chosen by it is no test.
        soft_labels: of "train", items have shares of people's votes as targets; labels to test on are single ones.
        cutting: how ranges that somebody marked in videos become clips (`fe_adapter.data.annotations`).
        options: as of `VideoDataset`.

    Raises:
        InputError: as `VideoDataset`; there is no such split; a malformed CSV.
    """
    if split is not None:
        check_choice("split", split, SPLITS)
    check_val_fraction(val_fraction)
    is_soft = soft_labels and split == "train"
    source = read_source(
        data,
        fold=fold,
        where=where,
        class_names=options.get("class_names"),
        soft_labels=is_soft,
        cutting=cutting,
        val_fraction=val_fraction,
        split_seed=split_seed,
    )
    by_split = source.by_split
    if select_on_test and "test" not in by_split:
        raise InputError(f"{data} has no test split to select on")
    if select_on_test:
        by_split = {**by_split, "val": by_split["test"]}
    if not by_split:
        raise InputError(f"{data} holds no videos")
    own = {name for name in by_split if name is not None}
    if split is None:
        split = "test" if "test" in own else "val" if "val" in own else None
    pool_name = "train" if own else None
    if options.get("class_names") is None:
        known = [by_split["train"]] if "train" in by_split else by_split.values()  # others are refused as unknown
        names = {clip.class_name for clips in known for clip in clips}
        options["class_names"] = source.class_names or sorted(names, key=natural)
    if split in own and not (split == "train" and "val" not in own):
        clips = by_split[split]
    elif split in ("train", "val") and pool_name in by_split:
        clips = held_out(data, by_split[pool_name], val_fraction, split_seed, of_validation=split == "val")
    elif split is None and None in by_split:
        clips = by_split[None]
    else:
        raise InputError(f"{data} has no {split or 'test or val'} split")
    dataset = VideoDataset(clips, source=str(data), **options)
    dataset.val_fraction = None if "val" in own and not source.cutting else val_fraction
    if split in own:
        dataset.split_name = "test" if select_on_test and split == "val" else source.split_names[split]
    origin = {"layout": source.layout, "fold": fold, "select_on_test": select_on_test}
    dataset.origin = {name: value for name, value in (origin | source.cutting).items() if value}
    return dataset


def check_val_fraction(val_fraction: float) -> None:
    """Raise `InputError` unless a share can be held out and another one left."""
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction={val_fraction} is outside (0, 1)")


def _probe_all(paths: list[str], on_error: str, source: str) -> tuple[dict[str, VideoInfo], list[str]]:
    """What is in every readable file, and the unreadable ones, each with its reason."""

    def look(path: str) -> VideoInfo | str:
        try:
            info = probe(path)
            if on_error == "skip":  # what is left out is left out in every epoch, and after a resume
                check_frames(info)
            return info
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        console = Console(stderr=True)
        found = list(
            track(
                pool.map(look, paths),
                description="Looking at videos",
                total=len(paths),
                transient=True,
                console=console,
                disable=len(paths) < 100,
            )
        )
    unreadable = [reason for reason in found if isinstance(reason, str)]
    if unreadable and on_error == "fail":
        shown = "; ".join(unreadable[:10]) + (f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else "")
        raise InputError(
            f"{source} has {len(unreadable)} unreadable videos: {shown}. "
            "on_error='skip' (--on-error skip) leaves them out"
        )
    for reason in unreadable:
        _log.warning("left out: %s", reason)
    return {path: info for path, info in zip(paths, found, strict=True) if isinstance(info, VideoInfo)}, unreadable
