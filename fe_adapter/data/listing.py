"""Which videos there are, of which class and split: a folder for every class, or a CSV file."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import io
import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fe_adapter.data.frames import FRAME_SUFFIXES, holds_frames
from fe_adapter.data.video import VIDEO_SUFFIXES
from fe_adapter.errors import InputError

_log = logging.getLogger("fe_adapter")
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # in folders and CSV files, whatever their case
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_COLUMNS = frozenset({"set", "subset", "partition", "usage", "is_train"})  # beside split and fold in CSV files
# what systems and programs leave in folders; whatever begins with a dot or with ~$ is left out as well
FOREIGN = frozenset({
    "__MACOSX", "__pycache__", "@__thumb", "@Recently-Snapshot", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN",
    "System Volume Information", "lost+found",
})  # fmt: skip
DELIMITERS = ",;\t|"
_NO_LABEL = frozenset({"nan", "null", "none", "n/a", "na", "#n/a"})  # what programs write where there is none


Rows: TypeAlias = list[tuple[int, dict[str, str]]]  # of a CSV file: the number of a line, and values by column


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file, or a folder of frames, and the name of its class.

    Args:
        path: the file or the folder.
        class_name: of its class.
        subject: who is seen, where that is known: nobody is then in both the training and the validation set.
        votes: how many people saw which class, where soft labels are asked for.
        window: the part of the video that is meant, ``(start, end)`` in seconds; None is all of it.
    """

    path: str
    class_name: str
    subject: str | None = None
    votes: tuple[tuple[str, float], ...] = ()
    window: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """The path and, of a part, its times, as the W3C writes media fragments: ``a.mp4#t=1.50,2.50``."""
        return self.path if self.window is None else f"{self.path}#t={self.window[0]:.2f},{self.window[1]:.2f}"


def list_folder(root: Path) -> list[Clip]:
    """The videos below ``root``, in the order of their names; a folder of frames is one, too.

    Hidden and foreign files and folders are left out.

    Raises:
        InputError: there is no such folder, no class folder in it, or a class without videos; classes of one name.
    """
    folders = _folders(root)
    check_names([folder.name for folder in folders], root)
    clips = []
    for folder in folders:
        files = find_videos(folder)
        if not files:
            stills = "; its images are no video, unless they are the frames in a folder of their own"
            raise InputError(
                f"{folder} holds no videos{stills if holds_frames(folder) else ''}; "
                f"known endings are {' '.join(VIDEO_SUFFIXES)}"
            )
        clips += [Clip(str(path), folder.name) for path in files]
    if not clips:
        raise InputError(f"{root} holds no class folders with videos; the layout is {root.name}/CLASS/VIDEO.mp4")
    return clips


def list_csv(file: Path) -> list[tuple[Clip, str | None]]:
    """The videos of a CSV file and the split of each; paths are relative to the file.

    What spreadsheets make of such a file is read as well: UTF-16 and byte order marks, semicolons, tabs or bars, a
    first line ``sep=;``, blanks around values, column names in any case, lines without values at the end, a backslash
    in a path. The split may be in a column of another name that holds nothing but names of splits.

    Raises:
        InputError: a missing column, value or file, or a path that is there twice; the line is named. Classes of one
            name, columns that disagree about splits, or a column such as ``fold`` that names none.
    """
    columns, rows = read_csv(file)
    for column in ("path", "label", "split"):
        if columns.count(column) > 1 or (column in ("path", "label") and column not in columns):
            found = ", ".join(map(repr, columns)) or "none"
            raise InputError(
                f"{file} has {'no' if column not in columns else 'more than one'} column {column!r}; it has {found}"
            )
    of_split = _split_column(file, columns, rows)
    clips: list[tuple[Clip, str | None]] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        name, label, written = row.get("path"), row.get("label", ""), row.get(str(of_split)) or None
        if not name or not label or label.lower() in _NO_LABEL:
            raise InputError(f"{file}, line {line}: path or label is missing")
        split = None if written is None else SPLIT_NAMES.get(written.lower())
        if written is not None and split is None:
            raise InputError(f"{file}, line {line}: {of_split} {written!r} is none of {', '.join(SPLIT_NAMES)}")
        path = path_in_csv(file, name)
        if path in lines:
            raise InputError(f"{file}, line {line}: {name} is there already, in line {lines[path]}")
        if not os.path.exists(path):  # noqa: PTH110 (paths are strings from here on)
            raise InputError(f"{file}, line {line}: {name}: no such file")
        lines[path] = line
        clips.append((Clip(path, label), split))
    check_names([clip.class_name for clip, _ in clips], file)
    return clips


def path_in_csv(file: Path, name: str) -> str:
    """Where a path in a CSV file leads, which may be of a Windows machine."""
    path = os.path.normpath(file.parent / name)
    if "\\" in name and not os.path.exists(path):  # noqa: PTH110 (a path is a string)
        return os.path.normpath(file.parent / name.replace("\\", "/"))
    return path


def clips_by_split(data: Path) -> dict[str | None, list[Clip]]:
    """The videos of a folder or CSV file; the key is None where the data has no splits of its own.

    A folder has splits where folders with the names of `SPLIT_NAMES`, one of them for training or nothing else beside
    them, hold folders rather than videos.

    Raises:
        InputError: as `list_folder` and `list_csv`; two folders for one split; videos beside the splits.
    """
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise InputError(f"{data} is no folder and no .csv file")
        by_split: dict[str | None, list[Clip]] = {}
        for clip, split in list_csv(data):
            by_split.setdefault(split, []).append(clip)
        if None in by_split and len(by_split) > 1:
            raise InputError(f"{data} leaves the split of some lines empty")
        return by_split
    if data.suffix.lower() == ".csv" and not data.exists():
        raise InputError(f"{data}: no such file")
    splits, others = _split_folders(_folders(data))
    if not splits or ("train" not in splits and others):
        _warn_of_splits(data, others)
        return {None: list_folder(data)}
    beside = [folder.name for folder in others if find_videos(folder)]
    if beside:
        raise InputError(
            f"{data} has the splits {', '.join(folder.name for folder in splits.values())} and, beside them, videos in "
            f"{beside[0]!r}; a split is named {', '.join(SPLIT_NAMES)}"
        )
    return {split: list_folder(splits[split]) for split in SPLITS if split in splits}


def name_of_split(data: Path, split: str) -> str:
    """What a folder or CSV file that has ``split`` calls it."""
    if data.is_file():
        return split
    return next(folder.name for folder in _folders(data) if SPLIT_NAMES.get(folder.name.lower()) == split)


def held_out(
    data: str | os.PathLike[str], clips: list[Clip], fraction: float, seed: int, of_validation: bool
) -> list[Clip]:
    """The held-out share of every class of ``data``, at least one clip of it, or the rest.

    Where it is known of all clips who is seen, it is a share of the people, and all clips of theirs.
    """
    subjects = sorted({clip.subject for clip in clips if clip.subject is not None})
    if len(subjects) > 1 and all(clip.subject is not None for clip in clips):
        order = np.random.default_rng(seed).permutation(len(subjects))
        people = {subjects[i] for i in order[: min(max(1, round(fraction * len(subjects))), len(subjects) - 1)]}
        return [clip for clip in clips if (clip.subject in people) == of_validation]
    chosen: set[str] = set()
    for name in {clip.class_name for clip in clips}:
        paths = sorted(clip.path for clip in clips if clip.class_name == name)
        if len(paths) < 2:
            raise InputError(
                f"{data}: class {name!r} has one video; it cannot be in both the training and the validation set"
            )
        order = np.random.default_rng(seed).permutation(len(paths))
        chosen.update(paths[i] for i in order[: max(1, round(fraction * len(paths)))])
    return [clip for clip in clips if (clip.path in chosen) == of_validation]


def natural(name: str) -> tuple[int, int, str]:
    """Numbers by value, before other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _split_folders(folders: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Folders by the split whose they are, and the others."""
    splits: dict[str, Path] = {}
    others = []
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or not _folders(folder) or find_videos(folder, deep=False):
            others.append(folder)
        elif split in splits:
            raise InputError(
                f"{folder.parent} has two folders for one split, {splits[split].name!r} and {folder.name!r}"
            )
        else:
            splits[split] = folder
    if others and len(folders) > 1 and all(folder.name.lower() in SPLIT_NAMES for folder in folders):
        raise InputError(
            f"{others[0].parent} has the splits {', '.join(folder.name for folder in folders)}, but {others[0].name!r} "
            "holds no class folders, or videos beside them"
        )
    return splits, others


def check_names(names: Iterable[str], source: Path) -> None:
    """Raise `InputError` where two classes would be one to people: happy and Happy, 1 and 01."""
    seen: dict[str, str] = {}
    for name in names:
        visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        plain = " ".join(visible.casefold().split())
        number = re.fullmatch(r"0*([0-9]+?)(\.0*)?", plain)
        other = seen.setdefault(number[1] if number else plain, name)
        if other != name:
            raise InputError(
                f"{source} has the classes {other!r} and {name!r}, which differ in case, blanks, zeros or what cannot "
                "be seen only; give them one name"
            )


def _warn_of_splits(root: Path, classes: list[Path]) -> None:
    """Say so where classes look like splits under names of their own: only folders in them, of the same names."""
    inside = ({folder.name for folder in _folders(path)} for path in classes)  # read as far as it is needed
    names = next(inside, set())
    is_alike = len(classes) > 1 and len(names) > 1 and all(others == names for others in inside)
    holds_clips = any(find_videos(path, deep=False) or any(map(holds_frames, _folders(path))) for path in classes)
    if is_alike and not holds_clips:
        _say_once(
            f"{root}: the classes {', '.join(path.name for path in classes)} hold folders of the same names; "
            "if they are splits, call them train, val and test"
        )


@functools.cache
def _say_once(message: str) -> None:
    """Data are listed for every split that is opened."""
    _log.warning("%s", message)


def _folders(root: Path) -> list[Path]:
    """The folders in ``root``, in the order of their names."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder" if root.exists() else f"{root}: no such folder or file")
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and _is_ours(path.name))
    except OSError as error:
        raise InputError(f"cannot read the folder {root}: {error.strerror or error}") from None


def find_videos(folder: Path, deep: bool = True) -> list[Path]:
    """The videos in ``folder`` and, deep, in the folders in it, in the order of their names.

    Deep, a folder of frames is a video; images beside a video are taken for pictures of it.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror or error}")

    found: list[Path] = []
    of_frames: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if deep and _is_ours(name)]
        names = [name for name in files if _is_ours(name)]
        videos = [Path(where, name) for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        found += [path for path in videos if path.is_file()]
        if not videos and where != str(folder) and any(name.lower().endswith(FRAME_SUFFIXES) for name in names):
            if of_frames.intersection(map(str, Path(where).parents)):
                raise InputError(f"{Path(where).parent} holds frames, and so does the folder {Path(where).name} in it")
            of_frames.add(where)
    return sorted([*found, *map(Path, of_frames)])


def _is_ours(name: str) -> bool:
    return not name.startswith((".", "~$")) and name not in FOREIGN


def _split_column(file: Path, columns: list[str], rows: Rows) -> str | None:
    """Which of the columns says the split of a line: the one called so, or one that holds names of splits alone."""

    def splits_in(column: str) -> list[str | None]:
        return [SPLIT_NAMES.get(row.get(column, "").lower()) for _, row in rows]

    def is_called_so(column: str) -> bool:
        return column in SPLIT_COLUMNS or "split" in column or "fold" in column

    def names_splits(column: str) -> bool:
        has_names_alone = all(row.get(column, "").lower() in ("", *SPLIT_NAMES) for _, row in rows)
        return has_names_alone and (is_called_so(column) or "train" in splits_in(column))

    others = [column for column in columns if column not in ("path", "label", "")]
    named = [column for column in others if names_splits(column)]
    meant = [column for column in others if column in named or is_called_so(column)]
    chosen = "split" if "split" in others else next(iter(named), None)
    if chosen is None and meant:
        raise InputError(
            f"{file} has a column {meant[0]!r} that names no splits; which lines are to train on and which to "
            "validate on says a column 'split' of train and val"
        )
    for column in [column for column in meant if column != chosen]:
        if column in named and splits_in(column) != splits_in(str(chosen)):
            raise InputError(
                f"{file} has the columns {chosen!r} and {column!r}, which name other splits; leave one out"
            )
        _say_once(f"{file}: the column {column!r} is not used; splits are those of {chosen!r}")
    return chosen


def read_csv(file: Path) -> tuple[list[str], Rows]:
    """The names of the columns, and every line that has values, without blanks around them."""
    text = _text(file)
    said = re.match(rf'"?sep=([{DELIMITERS}])"?[{DELIMITERS} ]*(?=\r|\n)', text, re.IGNORECASE)  # to Excel
    text = text if said is None else text[said.end() :]
    header = next((line.lower() for line in text.splitlines() if line.strip()), "")
    delimiter = next(
        (mark for mark in DELIMITERS if {"path", "label"} <= {part.strip(' "') for part in header.split(mark)}), ","
    )
    delimiter = delimiter if said is None else said[1]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file: {error}") from None
    lines = [(number, values) for number, values in lines if any(values)]
    if not lines:
        return [], []
    columns = [name.lower() for name in lines[0][1]]
    for number, values in lines[1:]:
        if any(values[len(columns) :]):
            raise InputError(
                f"{file}, line {number}: {len(values)} values for {len(columns)} columns; "
                f"quote a value that holds {delimiter!r}"
            )
    return columns, [(number, dict(zip(columns, values, strict=False))) for number, values in lines[1:]]


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no CSV file in UTF-8: {error}") from None
