"""List files: ``path label`` (ST-Adapter, MAE-DFER), ``path frames label`` (TSN, DFER-CLIP), or with a header.

A folder with ``train.txt``, ``val.csv``, ``test.txt`` and the like, or one such file. Paths are relative to the folder,
or to ``--frames-folder`` in it. Labels are names, or numbers from 0 that stand for the lines of ``classes.txt``;
without such a file the numbers themselves are the classes' names. The column of frames is not believed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.data.layouts.places import ClipsIn
from fe_adapter.data.layouts.tables import read_list, read_text
from fe_adapter.data.listing import SPLIT_NAMES, check_names
from fe_adapter.errors import InputError

_ENDINGS = (".csv", ".list", ".lst", ".txt")
_CLASSES = ("classes.txt", "class_names.txt", "labels.txt", "categories.txt")


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    folder = root if root.is_dir() else root.parent
    files = _lists(folder / where.lists if where.lists else root)
    clips = ClipsIn(folder / where.frames if where.frames else folder)
    names_file = next((folder / name for name in _CLASSES if (folder / name).is_file()), None)
    names = [] if names_file is None else [line.strip() for line in read_text(names_file).splitlines() if line.strip()]
    listing = Listing()
    for split, file in files.items():
        for name, label, count in read_list(file):
            if label.lstrip("-").isdecimal():
                index = int(label)
                if index < 0 or (names and index >= len(names)):
                    most = f" to {len(names) - 1}" if names else ""
                    listing.faults.append(f"{split}, {name}: label {label} is outside 0{most}")
                    continue
                label = names[index] if names else label
            elif names and label not in names:
                listing.faults.append(f"{split}, {name}: label {label!r} is not in {names_file}")
                continue
            path = _absolute(name) if name.startswith("/") else clips.find(name)
            listing.add(split, name, path, label, count)
    if names_file is None:
        check_names([clip.class_name for clips in listing.splits.values() for clip in clips], folder)
        listing.notes.append(f"{folder} has no {_CLASSES[0]}; classes are called as in the lists")
    return listing


def _lists(root: Path) -> dict[str, Path]:
    """The list of each split; a single file is that of "test"."""
    if root.is_file():
        return {"test": root}
    files = [path for path in sorted(root.glob("*")) if path.suffix.lower() in _ENDINGS and path.is_file()]
    found: dict[str, Path] = {}
    for file in files:
        word = re.split(r"[^a-z]", file.stem.lower())[0]
        split = SPLIT_NAMES.get(word)
        if split is not None and file.name not in _CLASSES:
            if split in found:
                raise InputError(f"{root} has two lists for one split, {found[split].name} and {file.name}")
            found[split] = file
    if not found:
        raise InputError(f"{root} has no lists such as train.txt, val.txt, test.txt")
    return found


def _absolute(name: str) -> str | None:
    return name if os.path.exists(name) else None  # noqa: PTH110


LAYOUT = Layout(name="list", title="list files", class_names=(), num_folds=0, is_root=lambda root: False, read=_read)
