"""DFEW (Jiang et al., ACM MM 2020): 11,697 clips of films with one of seven labels, five folds.

``EmoLabel_DataSplit/train(single-labeled)/set_1.csv`` holds ``video_name,label``: a number, which names the folder
``Clip/clip_224x224/00001``, and 1 to 7. Copies in other repositories are called ``train_set_1.csv`` and count from 0.
"""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import BadZipFile

from fe_adapter.data.layouts.layout import Layout, Listing, Where, totals_of
from fe_adapter.data.layouts.names import SEVEN
from fe_adapter.data.layouts.places import find_file, open_copy
from fe_adapter.data.layouts.tables import read_list
from fe_adapter.errors import InputError, first_line
from fe_adapter.libraries import require

_FRAMES = (
    "Clip/clip_224x224", "Clip/clip_224x224_16f", "Clip/jpg_256", "Clip/clip_224x224_avi", "clip_224x224_avi",
    "Clip/original", "original",
)  # fmt: skip
_LISTS = ("EmoLabel_DataSplit",)


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    clips, lists = open_copy(root, where, _FRAMES, _LISTS)
    listing = Listing(notes=[f"clips of {clips.folder}"])
    rows = {}
    for split in ("train", "test"):
        file = find_file(lists, f"{split}(single-labeled)/set_{fold}.csv", f"{split}_set_{fold}.csv")
        rows[split] = read_list(file)
    base = _first_label(rows, listing)
    for split, lines in rows.items():
        for name, label, _ in lines:
            name = name.rpartition(".")[0] if name.rpartition(".")[0].isdecimal() else name  # 2522.0, as pandas writes
            name = f"{int(name):05d}" if name.isdecimal() else name
            index = int(label) - base if label.lstrip("-").isdecimal() else -1
            if not 0 <= index < len(SEVEN):
                listing.faults.append(
                    f"{split}, clip {name}: label {label} is outside {base} to {base + len(SEVEN) - 1}"
                )
                continue
            listing.add(split, name, clips.find(name), SEVEN[index])
    return listing


def _first_label(rows: dict[str, list[tuple[str, str, int | None]]], listing: Listing) -> int:
    """Whether labels count from 1, as published, or from 0, as in some copies; both lists must agree."""
    bases = {}
    for split, lines in rows.items():
        labels = [int(label) for _, label, _ in lines if label.isdecimal()]
        if labels and (min(labels) == 0 or max(labels) == len(SEVEN)):  # or it cannot be told
            bases[split] = 0 if min(labels) == 0 else 1
    if len(set(bases.values())) > 1:
        said = " and ".join(f"those of {split} from {base}" for split, base in bases.items())
        listing.faults.append(f"labels count {said}: one of the lists is shifted by a class")
    base = next(iter(bases.values()), 1)
    if base == 0:
        listing.notes.append("labels count from 0, where the published lists count from 1")
    return base


def _votes(root: Path) -> dict[str, dict[str, float]]:
    """Of ``annotation.xlsx``: ``order``, the clip's number, then a column for each class, ``1happy`` to ``7fear``."""
    file = find_file(root / "Annotation", "annotation.xlsx")
    require("openpyxl", f"reading {file}", "data")
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(io.BytesIO(file.read_bytes()), read_only=True, data_only=True)
        rows = list(book.active.iter_rows(values_only=True))
        header = [str(cell).strip().lower() for cell in rows[0]]
        places = [header.index(f"{i}{name}") for i, name in enumerate(SEVEN, 1)]
        order = header.index("order")
        return {
            f"{int(row[order]):05d}": {name: float(row[i] or 0) for name, i in zip(SEVEN, places, strict=True)}
            for row in rows[1:]
            if row[order] is not None
        }
    except (InvalidFileException, BadZipFile, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{file} is not the published table of votes: {first_line(error)}") from None


LAYOUT = Layout(
    name="dfew",
    title="DFEW",
    class_names=SEVEN,
    num_folds=5,
    is_root=lambda root: any((root / name).is_dir() for name in (*_LISTS, "Clip")),
    read=_read,
    votes=_votes,
    totals=totals_of((2341, 2341, 2340, 2339, 2336), 11697),
    per_class={
        (1, "train"): (1956, 1515, 2135, 1738, 1175, 116, 721),
        (1, "test"): (489, 379, 534, 435, 294, 29, 181),
    },
)
