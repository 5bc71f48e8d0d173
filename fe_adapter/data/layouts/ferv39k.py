"""FERV39k (Wang et al., CVPR 2022): 38,935 clips of 22 scenes with one of seven labels, one official split.

``4_setups/All_scenes/train_All.csv`` has lines such as ``Action/Happy/0267 Happy``, without a header; other copies have
commas, a header, and numbers in one of two orders. The key of a clip is the whole path: there are 906 different ids.
The class is the path's own, and the label must agree with it.
"""

from __future__ import annotations

import collections
from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.data.layouts.names import SEVEN, find_class
from fe_adapter.data.layouts.places import find_file, open_copy
from fe_adapter.data.layouts.tables import read_list

_FRAMES = ("2_ClipsforFaceCrop", "1_ClipsforRaw", "0_RawClips")
_LISTS = ("4_setups/All_scenes", "4_setups")


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    clips, lists = open_copy(root, where, _FRAMES, _LISTS)
    listing = Listing(notes=[f"clips of {clips.folder}"])
    for split in ("train", "test"):
        file = find_file(lists, f"{split}_All.csv", f"{split}_All.txt", f"{split}.csv", f"{split}.txt")
        lines = read_list(file)
        meant = _meant(lines)
        for name, label, count in lines:
            own = _own_class(name)
            if own is None:
                listing.faults.append(f"{split}, clip {name}: no SCENE/CLASS/ID with a known class")
                continue
            said = meant[label] if label.isdecimal() else find_class(label, SEVEN)
            if said != own:
                listing.faults.append(f"{split}, clip {name}: label {label} where most with it are {said}"
                                      if label.isdecimal() else f"{split}, clip {name}: label {label}")  # fmt: skip
                continue
            listing.add(split, name, clips.find("/".join(_parts(name)[-3:])), own, count)
    return listing


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").strip("/").split("/")


def _own_class(name: str) -> str | None:
    """The class in a path that ends in SCENE/CLASS/ID."""
    parts = _parts(name)
    return find_class(parts[-2], SEVEN) if len(parts) >= 3 else None


def _meant(lines: list[tuple[str, str, int | None]]) -> dict[str, str]:
    """The class that a number stands for: that of most of the paths with it."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, label, _ in lines:
        if own := _own_class(name):
            counts[label][own] += 1
    return {label: counter.most_common(1)[0][0] for label, counter in counts.items()}


LAYOUT = Layout(
    name="ferv39k",
    title="FERV39k",
    class_names=SEVEN,
    num_folds=0,
    is_root=lambda root: any((root / name).is_dir() for name in ("4_setups", *_FRAMES)),
    read=_read,
    totals={(None, "train"): 31088, (None, "test"): 7847},
    per_class={
        (None, "train"): (5854, 5523, 7790, 5906, 2502, 1833, 1680),
        (None, "test"): (1473, 1393, 1958, 1487, 638, 467, 431),
    },
)
