"""MAFW (Liu et al., ACM MM 2022), single labels: 9,172 clips with one of eleven labels, five folds.

``Train & Test Set/single/no_caption/set_1/train.txt`` has lines such as ``03747.mp4 anger``, ended by CRLF; the lists
with captions are in GBK and name fewer clips. Copies call the folder ``split`` or ``anno``. Labels are names: numbers
are in circulation in three orders.
"""

from __future__ import annotations

from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where, totals_of
from fe_adapter.data.layouts.names import find_class
from fe_adapter.data.layouts.places import open_copy
from fe_adapter.data.layouts.tables import read_text
from fe_adapter.errors import InputError

CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety",
           "helplessness", "disappointment")  # fmt: skip
_FRAMES = ("data/faces", "data/frames", "data/clips", "faces", "frames", "clips")
_LISTS = ("Train & Test Set/single/no_caption", "split/single/no_caption", "anno/single/no_caption",
          "single/no_caption", "split", "anno")  # fmt: skip


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    clips, lists = open_copy(root, where, _FRAMES, _LISTS)
    listing = Listing(notes=[f"clips of {clips.folder}"])
    for split in ("train", "test"):
        file = lists / f"set_{fold}" / f"{split}.txt"
        lines = [line.split("\t") if "\t" in line else line.rsplit(None, 1) for line in read_text(file).splitlines()
                 if line.strip()]  # fmt: skip
        if not lines:
            raise InputError(f"{file} is empty")
        for number, cells in enumerate(lines, 1):
            name, label = (cell.strip() for cell in (*cells, "", "")[:2])
            _check_label(label, file, number)
            own = find_class(label, CLASSES)
            if own is None:
                listing.faults.append(f"{split}, clip {name}: label {label!r} is none of {', '.join(CLASSES)}")
                continue
            listing.add(split, name, clips.find(name), own)
    return listing


def _check_label(label: str, file: Path, number: int) -> None:
    if "_" in label:
        raise InputError(
            f"{file}, line {number}: {label} is a compound label, several emotions of one clip, which a classifier of "
            "one class a clip cannot learn; take the lists of single labels (single/no_caption)"
        )
    if label.isdecimal():
        raise InputError(
            f"{file}, line {number}: the label {label} is a number, of which three orders are in circulation; take the "
            "published lists, whose labels are names"
        )


LAYOUT = Layout(
    name="mafw",
    title="MAFW",
    class_names=CLASSES,
    num_folds=5,
    is_root=lambda root: (
        (root / "Train & Test Set").is_dir()
        or any(next((root / name).glob("**/set_1/train.txt"), None) for name in ("split", "anno", "single"))
    ),
    read=_read,
    totals=totals_of((1839, 1837, 1833, 1832, 1831), 9172),
    per_class={(1, "test"): (278, 128, 125, 249, 228, 294, 215, 48, 184, 53, 37)},
)
