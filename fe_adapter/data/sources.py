"""Where clips come from: a folder, a CSV file, or a published data set (``dfew:ROOT``)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fe_adapter.data.annotations import Cutting, cut, is_annotation, marks_of
from fe_adapter.data.layouts import LAYOUTS, Layout, Listing, Where, find_layout, read_listing
from fe_adapter.data.layouts.names import renamed
from fe_adapter.data.listing import Clip, clips_by_split, name_of_split
from fe_adapter.data.packed import is_pack, packed_clips, read_pack
from fe_adapter.data.votes import csv_votes, with_votes
from fe_adapter.errors import InputError

_log = logging.getLogger("fe_adapter")
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """The clips of one data set, or of one fold of it.

    Args:
        by_split: clips by "train", "val" and "test", or by None where the data has no splits of its own.
        class_names: the classes in the data set's own order; None is those found, sorted.
        layout: the published data set's name, where it is one.
        split_names: what the data calls its splits.
        cutting: of annotations, how clips were cut and a hash of the marks, as plain values.
    """

    by_split: dict[str | None, list[Clip]]
    class_names: tuple[str, ...] | None = None
    layout: str | None = None
    split_names: dict[str, str] = dataclasses.field(default_factory=dict)
    cutting: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_is_own(data: str | os.PathLike[str], fold: int | None, where: Where | None) -> None:
    """Raise `InputError` where a fold or folders of a published data set are asked for, of data that is none."""
    if fold is not None or where not in (None, Where()):
        option = "--fold" if fold is not None else "--frames-folder and --lists-folder"
        raise InputError(f"{option}: {data} is no published data set such as dfew:ROOT")


def layout_of(data: str | os.PathLike[str]) -> Layout | None:
    """The published data set that ``data`` is, by its name or packed; None where it is none."""
    found = find_layout(data)
    if found is not None:
        return found[0]
    return LAYOUTS.get(read_pack(Path(data)).layout or "") if is_pack(Path(data)) else None


def read_source(
    data: str | os.PathLike[str],
    *,
    fold: int | None = None,
    where: Where | None = None,
    class_names: Sequence[str] | None = None,
    soft_labels: bool = False,
    cutting: Cutting | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """All clips of ``data``, by split.

    Args:
        data: folder, CSV file, annotation, pack (`fe_adapter.data.pack`), or ``NAME:ROOT`` of a published data set.
        fold: of a published data set that has several.
        where: its folders, where they have other names than the published ones.
        class_names: a model's classes; a published data set's are called by those names for the same emotions.
        soft_labels: clips have the votes of people, of which the data must hold some.
        cutting: how ranges that are marked in videos become clips.
        val_fraction: of annotations, the share of what is marked that is for validation.
        split_seed: of annotations that are split by video, which ones.

    Raises:
        InputError: as `clips_by_split` and `read_listing`; lists name clips that are not there, or are faulty.
    """
    found = find_layout(data)
    if found is None and is_pack(Path(data)):
        return _unpacked(Path(data), fold, class_names, soft_labels)
    if found is None:
        check_is_own(data, fold, where)
        path = Path(data)
        if path.exists() and is_annotation(path):
            if soft_labels:
                raise InputError(f"{path} marks ranges with one label each; leave --soft-labels out")
            cutting = cutting or Cutting()
            by_split = cut(path, cutting, val_fraction, split_seed)
            how = {**dataclasses.asdict(cutting), "marks": marks_of(path, cutting)}
            return Source(by_split, split_names={s: s for s in by_split if s}, cutting=how)
        _check_no_cutting(data, cutting)
        by_split = clips_by_split(path)
        if soft_labels:
            by_split = _voted(path, by_split)
        names = {split: name_of_split(path, split) for split in by_split if split is not None}
        return Source(by_split, split_names=names)
    _check_no_cutting(data, cutting)
    layout, root = found
    listing = read_listing(layout, root, fold, where or Where())
    _check(listing, os.fspath(data))
    for note in listing.notes:
        _log.info("%s: %s", data, note)
    own = layout.class_names
    by_name: dict[str | None, list[Clip]] = {}
    for split, clips in listing.splits.items():
        if soft_labels:
            if layout.votes is None:
                raise InputError(
                    f"{layout.title} has no votes of people, which soft labels are; leave --soft-labels out"
                )
            votes = layout.votes(root)
            by_path = {clip.path: votes[Path(clip.path).stem] for clip in clips if Path(clip.path).stem in votes}
            clips = with_votes(clips, by_path, f"{data}: its annotation")
        by_name[split] = renamed(clips, class_names or own)
    return Source(by_name, own or None, layout.name, {split: split for split in listing.splits})


def _check_no_cutting(data: str | os.PathLike[str], cutting: Cutting | None) -> None:
    default = dataclasses.asdict(Cutting())
    given = {} if cutting is None else dataclasses.asdict(cutting)
    if other := [f"--{name.replace('_', '-')}" for name, value in given.items() if value != default[name]]:
        raise InputError(f"{', '.join(other)}: in {data} no ranges are marked, of which that is; leave it out")


def _unpacked(folder: Path, fold: int | None, class_names: Sequence[str] | None, soft_labels: bool) -> Source:
    """The clips of a pack, which were split when it was packed."""
    pack = read_pack(folder)
    by_split = packed_clips(folder, pack, fold)
    if soft_labels and not all(clip.votes for clips in by_split.values() for clip in clips):
        raise InputError(f"{folder} was packed without votes; pack again with --soft-labels")
    if not soft_labels:
        by_split = {split: [dataclasses.replace(clip, votes=()) for clip in clips] for split, clips in by_split.items()}
    own = tuple(pack.class_names) if pack.class_names else None
    if pack.layout is not None:
        by_split = {split: renamed(clips, class_names or own or ()) for split, clips in by_split.items()}
    return Source(by_split, own, pack.layout, pack.split_names, pack.cutting)


def _voted(path: Path, by_split: dict[str | None, list[Clip]]) -> dict[str | None, list[Clip]]:
    """Clips of a CSV file with the votes in its columns."""
    if not path.is_file():
        raise InputError(f"{path}: soft labels need a CSV with a column of votes for every class, or dfew:ROOT")
    names = list(dict.fromkeys(clip.class_name for clips in by_split.values() for clip in clips))
    votes = csv_votes(path, names)
    return {split: with_votes(clips, votes, str(path)) for split, clips in by_split.items()}


def _check(listing: Listing, data: str) -> None:
    advice = f"fe-adapter data check {data} says all that is wrong"
    if listing.absent:
        names = ", ".join(listing.absent[:_MOST_NAMED])
        more = f" and {len(listing.absent) - _MOST_NAMED} more" if len(listing.absent) > _MOST_NAMED else ""
        raise InputError(
            f"{data}: its lists name {len(listing.absent)} clips that are not there: {names}{more}; {advice}"
        )
    if listing.faults:
        more = f", and {len(listing.faults) - 1} more faults" if len(listing.faults) > 1 else ""
        raise InputError(f"{data}: {listing.faults[0]}{more}; {advice}")
    if not any(listing.splits.values()):
        raise InputError(f"{data} holds no clips")
    classes: dict[str, str] = {}
    for clip in (clip for clips in listing.splits.values() for clip in clips):
        other = classes.setdefault(clip.name, clip.class_name)
        if other != clip.class_name:
            raise InputError(f"{data}: {clip.path} is listed as {other} and as {clip.class_name}; {advice}")
    paths = {split: {os.path.realpath(clip.path) for clip in clips} for split, clips in listing.splits.items()}
    for split in ("val", "test"):
        if both := sorted(paths.get("train", set()) & paths.get(split, set())):
            more = f" and {len(both) - 1} more" if len(both) > 1 else ""
            raise InputError(f"{data}: {both[0]}{more}: in train and in {split}; {advice}")
