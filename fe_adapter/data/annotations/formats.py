"""Marked ranges of videos, as programs write them: CSV, SRT, WebVTT, and ELAN's .eaf."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from fe_adapter.data.layouts.tables import read_text
from fe_adapter.data.listing import check_names, path_in_csv, read_csv
from fe_adapter.data.video import VIDEO_SUFFIXES
from fe_adapter.errors import InputError, first_line
from fe_adapter.libraries import require

# 83.5, 1:23.5 or 0:01:23.5; what is behind a colon is below 60
_TIME = re.compile(r"(?:(?:(\d+):(?=[0-5]?\d:))?(\d+):(?=[0-5]?\d(?!\d)))?(\d+(?:[.,]\d*)?)")


@dataclasses.dataclass(frozen=True)
class Range:
    """What somebody marked: from ``start`` to ``end``, in seconds, a video shows ``label``.

    Args:
        video: a file, or a folder of frames.
        start: seconds from its first frame.
        end: likewise.
        label: the class.
        where: file and line or mark, for messages.
        split: "train", "val" or "test", where the annotation says it.
    """

    video: str
    start: float
    end: float
    label: str
    where: str
    split: str | None = None


def is_annotation(path: Path) -> bool:
    """Whether a file holds marked ranges, or a folder such files and nothing that is a class folder."""
    if path.is_dir():
        return any(file.suffix.lower() in _SUBTITLES for file in path.iterdir() if file.is_file())
    if path.suffix.lower() != ".csv":
        return path.suffix.lower() in FORMATS
    try:
        columns, _ = read_csv(path)
    except InputError:
        return False  # what is wrong with it is said where it is read as a list of videos
    return {"start", "end"} <= set(columns)


def read_ranges(path: Path, tier: str | None = None) -> list[Range]:
    """The ranges of an annotation file, or of all such files in a folder.

    Args:
        path: ends in .csv (columns ``path,start,end,label``, and maybe ``split``), .srt, .vtt or .eaf. Subtitles and
            ELAN's files are of the video of the same name beside them, ELAN's of the one they are linked to if it is
            there.
        tier: of an ELAN file with several.

    Raises:
        InputError: the file is damaged, or a range has no video, no times or no label; it is named.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUBTITLES)
        return [found for file in files for found in read_ranges(file, tier)]
    ranges = FORMATS[path.suffix.lower()](path, tier)
    if not ranges:
        raise InputError(f"{path} marks nothing")
    for found in ranges:
        if not found.label:
            raise InputError(f"{found.where}: the label is missing")
        if not found.end > found.start >= 0:
            raise InputError(f"{found.where}: {found.label!r} ends at {found.end:g} s and begins at {found.start:g} s")
    check_names([found.label for found in ranges], path)
    return ranges


def _read_csv(file: Path, tier: str | None) -> list[Range]:
    columns, rows = read_csv(file)
    for column in ("path", "start", "end", "label"):
        if columns.count(column) != 1:
            raise InputError(f"{file} has {'no' if column not in columns else 'more than one'} column {column!r}")
    ranges = []
    for line, row in rows:
        where = f"{file}, line {line}"
        start, end = (_seconds(row.get(name, ""), where) for name in ("start", "end"))
        video = path_in_csv(file, row["path"])
        if not row["path"] or not os.path.exists(video):  # noqa: PTH110 (paths are strings from here on)
            raise InputError(f"{where}: {row['path'] or 'path'}: no such file")
        ranges.append(Range(video, start, end, row.get("label", ""), where, row.get("split", "").lower() or None))
    return ranges


def _seconds(text: str, where: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: {text!r} is no time such as 83.5, 1:23.5 or 0:01:23.5")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds.replace(",", "."))


def _read_subtitles(file: Path, tier: str | None) -> list[Range]:
    require("pysubs2", f"reading {file}", "data")
    import pysubs2

    try:
        cues = pysubs2.SSAFile.from_string(read_text(file), format_=file.suffix.lower().lstrip("."))
    except (pysubs2.exceptions.Pysubs2Error, ValueError) as error:
        raise InputError(f"{file} is no subtitle file: {first_line(error)}") from None
    video = _beside(file)
    ranges = []
    for number, cue in enumerate(cues, 1):
        where, label = f"{file}, mark {number}", " ".join(cue.plaintext.split())
        if "-->" in label:
            raise InputError(f"{where}: times that cannot be read, in {label!r}")
        ranges.append(Range(video, cue.start / 1000, cue.end / 1000, label, where))
    return ranges


def _read_elan(file: Path, tier: str | None) -> list[Range]:
    require("pympi", f"reading {file}", "data")
    from pympi.Elan import Eaf

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints warnings
            content = Eaf(str(file))
        marked = {name: content.get_annotation_data_for_tier(name) for name in content.get_tier_names()}
    except Exception as error:  # of bare ones, too
        raise InputError(f"{file} is no ELAN file: {first_line(error)}") from None
    marked = {name: data for name, data in marked.items() if data}
    if tier is None and len(marked) > 1:
        raise InputError(f"{file} has the tiers {', '.join(marked)}; --tier names the one to learn")
    if tier is not None and tier not in marked:
        raise InputError(f"{file} has no tier {tier!r}; those with marks are {', '.join(marked) or 'none'}")
    video = _linked(file, content) or _beside(file)
    chosen = marked[tier] if tier is not None else next(iter(marked.values()), [])
    return [
        Range(video, start / 1000, end / 1000, " ".join(label.split()), f"{file}, mark {number}")
        for number, (start, end, label, *_) in enumerate(sorted(chosen), 1)
    ]


def _linked(file: Path, content: object) -> str | None:
    """The first video that an ELAN file is linked to and that is there."""
    for link in content.get_linked_files():  # type: ignore[attr-defined]
        for url in (link.get("RELATIVE_MEDIA_URL"), link.get("MEDIA_URL")):
            if not url or not url.lower().endswith(VIDEO_SUFFIXES):
                continue
            path = Path(urllib.parse.unquote(url.removeprefix("file://")))
            for place in (file.parent / path, file.parent / path.name):
                if place.is_file():
                    return os.path.normpath(place)
    return None


def _beside(file: Path) -> str:
    """The video of the same name: a file, or a folder of frames."""
    for path in sorted(file.parent.iterdir()):
        is_video = path.suffix.lower() in VIDEO_SUFFIXES and path.stem == file.stem
        if is_video or (path.is_dir() and path.name == file.stem):
            return str(path)
    raise InputError(f"{file}: there is no video {file.stem}.mp4 or the like beside it")


FORMATS: dict[str, Callable[[Path, str | None], list[Range]]] = {
    ".csv": _read_csv,
    ".srt": _read_subtitles,
    ".vtt": _read_subtitles,
    ".eaf": _read_elan,
}
_SUBTITLES = tuple(suffix for suffix in FORMATS if suffix != ".csv")
