"""Which videos there are, of which class and split: a folder for every class, or a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np

from fe_adapter.data.video import VIDEO_SUFFIXES
from fe_adapter.errors import InputError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file and the name of its class."""

    path: str
    class_name: str


def list_folder(root: Path) -> list[Clip]:
    """The videos below ``root``, in the order of their names.

    Raises:
        InputError: there is no such folder, no class folder in it, or a class without videos.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    clips = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        if not files:
            raise InputError(f"{folder} holds no videos; known endings are {' '.join(VIDEO_SUFFIXES)}")
        clips += [Clip(str(path), folder.name) for path in files]
    if not clips:
        raise InputError(f"{root} holds no class folders with videos; the layout is {root.name}/CLASS/VIDEO.mp4")
    return clips


def list_csv(file: Path) -> list[tuple[Clip, str | None]]:
    """The videos of a CSV file and the split of each; paths are relative to the file.

    Raises:
        InputError: a missing column, value or file, or a path that is there twice; the line is named.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            columns, rows = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no CSV file in UTF-8: {error}") from None
    for column in ("path", "label"):
        if column not in columns:
            raise InputError(f"{file} has no column {column!r}; it has {', '.join(map(repr, columns)) or 'none'}")
    clips: list[tuple[Clip, str | None]] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        name, label, split = row["path"], (row["label"] or "").strip(), row.get("split") or None
        if not name or not label:
            raise InputError(f"{file}, line {line}: path or label is missing")
        if split is not None and split not in SPLITS:
            raise InputError(f"{file}, line {line}: split {split!r} is none of {', '.join(SPLITS)}")
        path = os.path.normpath(file.parent / name)
        if path in lines:
            raise InputError(f"{file}, line {line}: {name} is there already, in line {lines[path]}")
        if not os.path.isfile(path):  # noqa: PTH113 (paths are strings from here on)
            raise InputError(f"{file}, line {line}: {name}: no such file")
        lines[path] = line
        clips.append((Clip(path, label), split))
    return clips


def clips_by_split(data: Path) -> dict[str | None, list[Clip]]:
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise InputError(f"{data} is no folder and no .csv file")
        by_split: dict[str | None, list[Clip]] = {}
        for clip, split in list_csv(data):
            by_split.setdefault(split, []).append(clip)
        if None in by_split and len(by_split) > 1:
            raise InputError(f"{data} leaves the split of some lines empty")
        return by_split
    if (data / "train").is_dir() and not any(p.suffix.lower() in VIDEO_SUFFIXES for p in (data / "train").iterdir()):
        return {split: list_folder(data / split) for split in SPLITS if (data / split).is_dir()}
    return {None: list_folder(data)}


def held_out(clips: list[Clip], fraction: float, seed: int, of_validation: bool) -> list[Clip]:
    """The held-out share of every class, at least one clip of it, or the rest."""
    chosen: set[str] = set()
    for name in {clip.class_name for clip in clips}:
        paths = sorted(clip.path for clip in clips if clip.class_name == name)
        if len(paths) < 2:
            raise InputError(f"class {name!r} has one video; it cannot be in both the training and the validation set")
        order = np.random.default_rng(seed).permutation(len(paths))
        chosen.update(paths[i] for i in order[: max(1, round(fraction * len(paths)))])
    return [clip for clip in clips if (clip.path in chosen) == of_validation]


def natural(name: str) -> tuple[int, int, str]:
    """Numbers by value, before other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
