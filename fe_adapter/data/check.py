"""What is wrong with a copy of a data set, or with one's own: counts, missing and unreadable clips, labels, leakage."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from fe_adapter.data.annotations import Cutting
from fe_adapter.data.contact_sheet import draw_contact_sheet, draw_histograms
from fe_adapter.data.faces.clips import of_clip
from fe_adapter.data.faces.face import FaceRecipe
from fe_adapter.data.faces.sightings import Sightings, find_sightings
from fe_adapter.data.frames import are_alike, frame_size
from fe_adapter.data.layouts import Layout, Listing, Where, find_layout, read_listing
from fe_adapter.data.listing import Clip
from fe_adapter.data.packed import is_pack
from fe_adapter.data.reading import check_frames, probe, read_frames
from fe_adapter.data.sources import check_is_own, read_source
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import make_folder, write_figure, write_json

ALL = "all"  # of data without splits
_SHORT = 16  # frames: fewer are repeated in a clip of the published protocols


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is off.

    Args:
        kind: "absent", "list", "unreadable", "count", "class", "votes", "leak", "content", "frames", "size" or "face".
        message: a sentence.
        names: every clip it is about.
    """

    kind: str
    message: str
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Args:
        data: what was looked at.
        findings: what is off; empty where nothing is.
        notes: what is worth knowing.
        counts: clips by fold ("" without folds), split and class.
        infos: what is in every readable clip, by path.
        clips: one `Clip` for each of them.
        faces: the face of each clip, by its name, where faces were looked for.
    """

    data: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    counts: dict[str, dict[str, dict[str, int]]]
    infos: dict[str, VideoInfo]
    clips: tuple[Clip, ...]
    faces: dict[str, Sightings] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        frames = collections.Counter(info.num_frames for info in self.infos.values())
        sizes = collections.Counter(f"{info.height}x{info.width}" for info in self.infos.values())
        return {
            "data": self.data,
            "is_clean": not self.findings,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "counts": self.counts,
            "num_clips": len(self.clips),
            "frames": {str(number): frames[number] for number in sorted(frames)},
            "sizes": dict(sizes.most_common()),
        }

    def save(self, folder: Path) -> None:
        """Write ``check.json``, ``contact_sheet.png``, ``histograms.png`` and, of faces, ``faces.png``."""
        make_folder(folder)
        write_json(folder / "check.json", self.as_dict())
        if self.infos:
            write_figure(draw_contact_sheet(self.clips, self.infos), folder / "contact_sheet.png")
            if self.faces:
                write_figure(draw_contact_sheet(self.clips, self.infos, self.faces), folder / "faces.png")
            write_figure(draw_histograms(list(self.infos.values())), folder / "histograms.png")


def check_data(
    data: str | os.PathLike[str],
    *,
    fold: int | None = None,
    where: Where | None = None,
    is_subset: bool = False,
    content: bool = False,
    faces: FaceRecipe | None = None,
    face_cache: Path | None = None,
    cutting: Cutting | None = None,
    val_fraction: float = 0.2,
) -> DataReport:
    """Look at every clip of ``data``, and say all that is off.

    Args:
        data: folder, CSV file, or ``NAME:ROOT`` of a published data set.
        fold: of a published data set; None is all of them.
        where: its folders, where they have other names than the published ones.
        is_subset: it is a part of the published data set, whose counts are others.
        content: decode every frame, and find the same content under two names.
        faces: look for the face of every clip in this way.
        face_cache: folder where boxes are kept, as of `fe_adapter.data.crop_to_faces`.
        cutting: how ranges that are marked in videos become clips.
        val_fraction: likewise, the share of what is marked that is for validation.

    Raises:
        InputError: there is no such data at all, or it is another data set than the one named.
    """
    found = find_layout(data)
    findings: list[Finding] = []
    layout, listings = None, dict[int | None, Listing]()
    if found is None:
        if not is_pack(Path(data)):
            check_is_own(data, fold, where)
        listings[fold] = _own_listing(Path(data), fold, findings, cutting, val_fraction)
    else:
        layout = found[0]
        folds = layout.folds() if fold is None else (fold,)
        for k in folds:
            try:
                listings[k] = read_listing(layout, found[1], k, where or Where())
            except InputError as error:
                if layout.num_folds == 0 or f"set_{k}" not in str(error):  # it is not the lists of one fold alone
                    raise
                findings.append(Finding("list", str(error)))
    for k, listing in listings.items():
        findings += _of_lists(_in_fold(k), listing)
    clips = {clip.name: clip for listing in listings.values() for some in listing.splits.values() for clip in some}
    looks = _look_at_all(list(dict.fromkeys(clip.path for clip in clips.values())), content)
    findings += _of_files(looks, {p: n for listing in listings.values() for p, n in listing.frame_counts.items()})
    findings += _leaks(listings)
    findings += _two_classes(listings)
    if content:
        findings += _same_content(listings, looks)
    notes = list(dict.fromkeys(note for listing in listings.values() for note in listing.notes))
    if found is not None and layout is not None and layout.votes is not None:
        try:
            findings += _against_votes(layout.votes(found[1]), clips.values())
        except InputError as error:  # which soft labels would need
            notes.append(f"labels were not compared with people's votes: {error}")
    if layout is not None and not is_subset:
        findings += _against_published(layout, listings)
    infos = {path: look.info for path, look in looks.items() if look.info is not None}
    short = sum(info.num_frames < _SHORT for info in infos.values())
    if short:
        notes.append(f"{short} clips have fewer than {_SHORT} frames; a clip of {_SHORT} repeats some of theirs")
    mixed = sum(len(look.sizes) > 1 for look in looks.values())
    if mixed:
        notes.append(f"{mixed} folders hold frames of several sizes, which are scaled to the first one's")
    there = tuple(clip for clip in clips.values() if clip.path in infos)
    seen: dict[str, Sightings] = {}
    if faces is not None:
        found_faces = find_sightings(list(infos.values()), faces, cache=face_cache)
        seen = {clip.name: of_clip(clip, infos[clip.path], found_faces[clip.path]) for clip in there}
        if without := tuple(name for name, own in seen.items() if not len(own.frames)):
            findings.append(Finding("face", f"no face is found in {len(without)} of {len(seen)} clips", without))
    counts = {"" if k is None else str(k): _counts(listing) for k, listing in listings.items()}
    return DataReport(os.fspath(data), tuple(findings), tuple(notes), counts, infos, there, seen)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one clip turned out to be: what is in it, or why it cannot be read."""

    info: VideoInfo | None = None
    reason: str = ""
    sizes: tuple[tuple[int, int], ...] = ()  # of a folder's frames, each once
    digest: str = ""


def _own_listing(
    path: Path, fold: int | None, findings: list[Finding], cutting: Cutting | None, val_fraction: float
) -> Listing:
    """The clips of a folder, a CSV file, an annotation or a pack."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    try:
        by_split = read_source(path, fold=fold, cutting=cutting, val_fraction=val_fraction).by_split
    except InputError as error:
        findings.append(Finding("list", str(error)))
        return Listing()
    listing = Listing({split or ALL: clips for split, clips in by_split.items()})
    names = {split: {clip.class_name for clip in clips} for split, clips in listing.splits.items()}
    everything = set().union(*names.values())
    for split, there in names.items():
        if lost := sorted(everything - there):
            findings.append(Finding("class", f"split {split} has no clips of {', '.join(lost)}", tuple(lost)))
    if len(everything) < 2:
        findings.append(Finding("class", f"{path} has {len(everything)} classes; a classifier needs two or more"))
    return listing


def _of_lists(in_fold: str, listing: Listing) -> Iterable[Finding]:
    if listing.absent:
        message = f"{len(listing.absent)} clips{in_fold} are listed and not there"
        yield Finding("absent", message, tuple(listing.absent))
    for fault in listing.faults:
        yield Finding("list", f"{fault}{in_fold}")
    for split, clips in listing.splits.items():
        paths = collections.Counter(clip.name for clip in clips)
        twice = tuple(path for path, count in paths.items() if count > 1)
        if twice:
            yield Finding("list", f"{len(twice)} clips are twice in {split}{in_fold}", twice)


def _look_at_all(paths: Sequence[str], content: bool) -> dict[str, Look]:
    def look(path: str) -> Look:
        sizes: tuple[tuple[int, int], ...] = ()
        try:
            info = probe(path)
            sizes = tuple(dict.fromkeys(map(frame_size, info.files)))
            if content and not _are_odd(sizes):
                check_frames(info)
            return Look(info, sizes=sizes, digest=_digest(info) if content else "")
        except (InputError, OSError) as error:
            return Look(reason=str(error), sizes=sizes)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        console = Console(stderr=True)
        found = track(pool.map(look, paths), "Looking at clips", len(paths), transient=True, console=console)
        return dict(zip(paths, found, strict=True))


def _digest(info: VideoInfo) -> str:
    """A hash of what is in a clip, whatever its files are called."""
    whole = hashlib.blake2b(digest_size=16)
    if info.packed:
        whole.update(read_frames(info).numpy().tobytes())
    for file in () if info.packed else info.files or (info.path,):
        whole.update(hashlib.blake2b(Path(file).read_bytes()).digest())
    return whole.hexdigest()


def _of_files(looks: dict[str, Look], promised: dict[str, int]) -> Iterable[Finding]:
    empty = [path for path, look in looks.items() if "holds no frames" in look.reason or "is empty" in look.reason]
    if empty:
        yield Finding("unreadable", f"{len(empty)} clips are empty", tuple(empty))
    reasons = [look.reason for path, look in looks.items() if look.info is None and path not in set(empty)]
    if reasons:
        yield Finding("unreadable", f"{len(reasons)} clips cannot be read", tuple(reasons))
    infos = {path: look.info for path, look in looks.items() if look.info is not None}
    wrong = [f"{path}: {infos[path].num_frames}, not {n}" for path, n in promised.items()
             if path in infos and infos[path].num_frames != n]  # fmt: skip
    if wrong:
        yield Finding("frames", f"{len(wrong)} clips have other numbers of frames than the list says", tuple(wrong))
    odd = tuple(path for path, look in looks.items() if _are_odd(look.sizes))
    if odd:
        yield Finding("size", f"{len(odd)} folders hold frames of different shapes", odd)


def _are_odd(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether frames differ in shape from the first one, so that none is read of them."""
    return not all(are_alike(size, sizes[0]) for size in sizes)


def _leaks(listings: dict[int | None, Listing]) -> Iterable[Finding]:
    tested: dict[str, int | None] = {}
    for k, listing in listings.items():
        sets = {split: {_real(clip) for clip in clips} for split, clips in listing.splits.items()}
        people = {split: {clip.subject for clip in clips} - {None} for split, clips in listing.splits.items()}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            if both := sorted(sets.get(a, set()) & sets.get(b, set())):
                yield Finding("leak", f"{len(both)} clips are in {a} and in {b}{_in_fold(k)}", tuple(both))
            if both := sorted(map(str, people.get(a, set()) & people.get(b, set()))):
                yield Finding("leak", f"{len(both)} people are in {a} and in {b}{_in_fold(k)}", tuple(both))
        again = sorted(path for path in sets.get("test", set()) if path in tested)
        if again:
            message = f"{len(again)} test clips of fold {k} are test clips of fold {tested[again[0]]}"
            yield Finding("leak", message, tuple(again))
        tested |= dict.fromkeys(sets.get("test", set()), k)


def _two_classes(listings: dict[int | None, Listing]) -> Iterable[Finding]:
    classes: dict[str, set[str]] = collections.defaultdict(set)
    for clip in (clip for listing in listings.values() for clips in listing.splits.values() for clip in clips):
        classes[_real(clip)].add(clip.class_name)
    names = tuple(f"{name}: {' and '.join(sorted(own))}" for name, own in classes.items() if len(own) > 1)
    if names:
        yield Finding("class", f"{len(names)} clips are listed as more than one class", names)


def _real(clip: Clip) -> str:
    """Where a clip's path leads, and which part of it is meant."""
    return dataclasses.replace(clip, path=os.path.realpath(clip.path)).name


def _same_content(listings: dict[int | None, Listing], looks: dict[str, Look]) -> Iterable[Finding]:
    for k, listing in listings.items():
        where: dict[str, list[tuple[str, Clip]]] = collections.defaultdict(list)
        for split, clips in listing.splits.items():
            for clip in clips:
                if digest := looks[clip.path].digest:
                    where[digest].append((split, clip))
        same = [found for found in where.values() if len({os.path.realpath(clip.path) for _, clip in found}) > 1]
        for found, message in (
            ([f for f in same if len({split for split, _ in f}) > 1], "in two splits"),
            ([f for f in same if len({clip.class_name for _, clip in f}) > 1], "of two classes"),
        ):
            if found:
                names = tuple(" = ".join(f"{split} {clip.path}" for split, clip in f) for f in found)
                yield Finding(
                    "content", f"{len(found)} clips are the same under two names {message}{_in_fold(k)}", names
                )


def _against_votes(votes: Mapping[str, Mapping[str, float]], clips: Iterable[Clip]) -> Iterable[Finding]:
    """A label is that of most people; of clips that nobody voted on soft labels could not be had."""
    lost, other = [], []
    for clip in clips:
        own = votes.get(Path(clip.path).stem)
        if own is None:
            lost.append(clip.name)
        elif own.get(clip.class_name, 0) < max(own.values()):
            other.append(f"{clip.name}: {clip.class_name}, not {max(own, key=own.__getitem__)}")
    if lost:
        yield Finding("votes", f"{len(lost)} clips have no votes of people", tuple(lost))
    if other:
        yield Finding("votes", f"{len(other)} clips are listed as another class than most people saw", tuple(other))


def _against_published(layout: Layout, listings: dict[int | None, Listing]) -> Iterable[Finding]:
    for k, listing in listings.items():
        there = _counts(listing)
        for split in listing.splits:
            total, key = sum(there[split].values()), (k, split)
            if total != layout.totals.get(key, total):
                message = f"{split}{_in_fold(k)} has {total:,} clips, where {layout.title} has {layout.totals[key]:,}"
                yield Finding("count", message)
            for name, count in zip(layout.class_names, layout.per_class.get(key, ()), strict=False):
                if there[split].get(name, 0) != count:
                    own = there[split].get(name, 0)
                    yield Finding("count", f"{split}{_in_fold(k)} has {own:,} {name} clips, published are {count:,}")


def _counts(listing: Listing) -> dict[str, dict[str, int]]:
    by_split = {
        split: collections.Counter(clip.class_name for clip in clips) for split, clips in listing.splits.items()
    }
    return {split: dict(counter) for split, counter in by_split.items()}


def _in_fold(fold: int | None) -> str:
    return "" if fold is None else f" of fold {fold}"
