"""Where things are below the root of a data set: folders by any of their names, clips by name."""

from __future__ import annotations

import os
from pathlib import Path

from fe_adapter.data.layouts.layout import Where
from fe_adapter.data.video import VIDEO_SUFFIXES
from fe_adapter.errors import InputError


def open_copy(root: Path, where: Where, frames: tuple[str, ...], lists: tuple[str, ...]) -> tuple[ClipsIn, Path]:
    """The clips and the folder of the lists of a copy of a data set, by the names that copies go by.

    Raises:
        InputError: as `find_folder`.
    """
    clips = ClipsIn(find_folder(root, where.frames, frames, "clips", "--frames-folder"))
    return clips, find_folder(root, where.lists, lists, "split lists", "--lists-folder")


def find_folder(root: Path, given: str | None, candidates: tuple[str, ...], what: str, option: str) -> Path:
    """The folder ``given`` below ``root``, or the first of the candidates that is there.

    Raises:
        InputError: there is none; the message says what ``option`` is for.
    """
    for name in (given,) if given is not None else candidates:
        if (root / name).is_dir():
            return root / name
    if given is not None:
        raise InputError(f"{root / given}: no such folder; {option} names a folder below {root}")
    raise InputError(f"{root} has none of the folders {', '.join(candidates)} for its {what}; {option} names another")


def find_file(folder: Path, *candidates: str) -> Path:
    """The first of the candidates that is in ``folder``.

    Raises:
        InputError: none is.
    """
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has none of {', '.join(candidates)}")


class ClipsIn:
    """The clips of one folder by name: folders of frames, or videos with whatever ending."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, dict[str, str]] = {}  # by folder: what is in it, by name and by stem

    def find(self, name: str) -> str | None:
        """The path of a clip, whose name may have folders in front and a video's ending; None where it is not there."""
        parent, _, last = name.replace("\\", "/").strip("/").rpartition("/")
        there = self._there(parent)
        stem, dot, ending = last.rpartition(".")
        found = there.get(last)
        if found is None and dot and f".{ending.lower()}" in VIDEO_SUFFIXES:
            found = there.get(stem)
        return None if found is None else os.path.join(self.folder, parent, found)  # noqa: PTH118

    def _there(self, parent: str) -> dict[str, str]:
        if parent not in self._names:
            try:
                with os.scandir(self.folder / parent) as entries:
                    found = sorted((entry.name, entry.is_dir()) for entry in entries)
            except OSError:
                found = []
            videos = [name for name, is_dir in found if not is_dir and name.lower().endswith(VIDEO_SUFFIXES)]
            folders = [name for name, is_dir in found if is_dir]
            by_stem = {name.rpartition(".")[0]: name for name in videos}
            self._names[parent] = by_stem | {name: name for name in videos} | {name: name for name in folders}
        return self._names[parent]
