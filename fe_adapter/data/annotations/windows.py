"""Clips out of marked ranges: windows of one length, split so that no part of a video is on both sides."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fe_adapter.checks import check_choice
from fe_adapter.data.annotations.formats import Range, read_ranges
from fe_adapter.data.listing import SPLIT_NAMES, Clip
from fe_adapter.data.reading import probe
from fe_adapter.data.sampling import sliding_windows
from fe_adapter.errors import InputError

SPLIT_BY = ("time", "video")
_SLACK = 0.1  # seconds that a mark may be beyond the end of its video
_CRUMB = 0.5  # windows: a shorter piece is not cut off a range


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How ranges become clips.

    Args:
        window: seconds of a clip; half of it from one to the next.
        background: the class of what lies between ranges; None leaves it out.
        split_by: "time", the last of what is marked of every class in every video is for validation; or "video".
        tier: of ELAN's files with several.

    Raises:
        InputError: a value is out of range.
    """

    window: float = 1.0
    background: str | None = None
    split_by: str = "time"
    tier: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.window < 1e6:
            raise InputError(f"window={self.window} is no positive number of seconds")
        check_choice("split_by", self.split_by, SPLIT_BY)
        if self.background == "":
            raise InputError("background='' is no name of a class")


def cut(path: Path, cutting: Cutting, val_fraction: float, seed: int) -> dict[str | None, list[Clip]]:
    """The clips of an annotation file, by split; the annotation's own splits are used if it has some.

    Raises:
        InputError: as `read_ranges`; ranges overlap, or lie beyond the video; too little is marked of a class.
    """
    ranges = _checked(read_ranges(path, cutting.tier))
    own = [r for r in ranges if r.split is not None]
    if own and len(own) < len(ranges):
        raise InputError(f"{path} leaves the split of some lines empty")
    if cutting.background is not None:
        ranges += list(_gaps(ranges, cutting))
    if own:
        parts = {split: [r for r in ranges if r.split == split] for split in ("train", "val", "test")}
        parts = {split: found for split, found in parts.items() if found}
    elif cutting.split_by == "video":
        parts = _by_video(ranges, val_fraction, seed, path)
    else:
        parts = _by_time(ranges, val_fraction, cutting.window)
    clips: dict[str | None, list[Clip]] = {}
    for split, found in parts.items():
        clips[split] = [clip for r in found for clip in _windows(r, cutting.window)]
    marked: dict[str, float] = collections.defaultdict(float)
    for r in ranges:
        marked[r.label] += r.end - r.start
    for split in ("train", "val") if not own else ():
        lost = sorted(set(marked) - {clip.class_name for clip in clips.get(split, [])})
        if lost:
            raise InputError(
                f"{path}: {marked[lost[0]]:.1f} s are marked {lost[0]!r}, too little for clips of {cutting.window:g} s "
                f"in both training and validation; mark more, or take a smaller --window"
            )
    return clips


def marks_of(path: Path, cutting: Cutting) -> str:
    """A hash of what is marked in which videos, by their names: of other marks it is another."""
    marks = sorted((Path(r.video).name, r.start, r.end, r.label, r.split) for r in read_ranges(path, cutting.tier))
    return hashlib.blake2b(repr(marks).encode(), digest_size=8).hexdigest()


def _checked(ranges: list[Range]) -> list[Range]:
    """The ranges in the order of videos and times, none longer than its video, none into another."""
    durations = {video: probe(video).duration for video in dict.fromkeys(r.video for r in ranges)}
    found: list[Range] = []
    for r in sorted(ranges, key=lambda r: (r.video, r.start, r.end)):
        if r.end > durations[r.video] + _SLACK:
            raise InputError(
                f"{r.where}: ends at {r.end:g} s, beyond {r.video}, which ends at {durations[r.video]:.2f} s"
            )
        if r.split is not None and r.split not in SPLIT_NAMES:
            raise InputError(f"{r.where}: split {r.split!r} is none of {', '.join(SPLIT_NAMES)}")
        before = found[-1] if found else None
        if before is not None and before.video == r.video and r.start < before.end - 1e-6:
            raise InputError(
                f"{r.where}: {r.label!r} from {r.start:g} s overlaps {before.label!r} until {before.end:g} s "
                f"({before.where})"
            )
        split = None if r.split is None else SPLIT_NAMES[r.split]
        found.append(dataclasses.replace(r, end=min(r.end, durations[r.video]), split=split))
    return found


def _gaps(ranges: list[Range], cutting: Cutting) -> Iterable[Range]:
    """What lies before, between and behind the ranges of a video, where it is as long as a clip."""
    assert cutting.background is not None
    if any(r.label == cutting.background for r in ranges):
        raise InputError(f"--background {cutting.background}: there are marks of that name; choose another one")
    for video in dict.fromkeys(r.video for r in ranges):
        own = [r for r in ranges if r.video == video]
        ends = [0.0, *(r.end for r in own)]
        starts = [*(r.start for r in own), probe(video).duration]
        neighbours = [own[0], *own]
        for end, start, neighbour in zip(ends, starts, neighbours, strict=True):
            if start - end >= cutting.window:
                where = f"{video}, between marks"
                yield Range(video, end, start, cutting.background, where, neighbour.split)


def _by_video(ranges: list[Range], fraction: float, seed: int, path: Path) -> dict[str, list[Range]]:
    videos = list(dict.fromkeys(r.video for r in ranges))
    if len(videos) < 2:
        raise InputError(f"{path} is of one video, which --split-by video cannot split; take time")
    order = np.random.default_rng(seed).permutation(len(videos))
    count = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    chosen = {videos[i] for i in order[:count]}
    return {split: [r for r in ranges if (r.video in chosen) == (split == "val")] for split in ("train", "val")}


def _by_time(ranges: list[Range], fraction: float, window: float) -> dict[str, list[Range]]:
    """The last share of every class's time in a video to "val"; "train" keeps a window's distance from it."""
    train: list[Range] = []
    val: list[Range] = []
    groups = collections.defaultdict(list)
    for r in ranges:
        groups[r.video, r.label].append(r)
    for group in groups.values():
        left = fraction * sum(r.end - r.start for r in group)
        for r in sorted(group, key=lambda r: -r.start):
            length = r.end - r.start
            if left <= 0 or length - left < _CRUMB * window or left < _CRUMB * window:
                # as a whole to the side that is nearer to the share
                (val if left > 0 and left >= length / 2 else train).append(r)
            else:
                train.append(dataclasses.replace(r, end=r.end - left))
                val.append(dataclasses.replace(r, start=r.end - left))
            left -= length
    return {"train": [piece for r in train for piece in _away_from(r, val, window)], "val": val}


def _away_from(r: Range, others: list[Range], distance: float) -> list[Range]:
    """What is left of a range at a distance from the others of its video; no crumbs."""
    pieces = [(r.start, r.end)]
    for other in others:
        if other.video == r.video:
            low, high = other.start - distance, other.end + distance
            pieces = [
                piece for a, b in pieces for piece in ((a, min(b, low)), (max(a, high), b)) if piece[1] > piece[0]
            ]
    is_whole = pieces == [(r.start, r.end)]
    return [dataclasses.replace(r, start=a, end=b) for a, b in pieces if is_whole or b - a >= _CRUMB * distance]


def _windows(r: Range, window: float) -> list[Clip]:
    parts = sliding_windows(r.end - r.start, window, window / 2)
    return [Clip(r.video, r.label, window=(r.start + a, r.start + b)) for a, b in parts]
