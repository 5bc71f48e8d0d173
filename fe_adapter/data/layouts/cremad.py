"""CREMA-D (Cao et al., 2014): 7,442 clips of 91 actors with one of six labels.

All is in the name, ``VideoFlash/1001_DFA_ANG_XX.flv``: actor, sentence, emotion, level. The five folds are those of
MAE-DFER, no actor in two of them. The videos show more than the face: crop them first.
"""

from __future__ import annotations

import re
from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.data.layouts.places import find_folder
from fe_adapter.data.listing import Clip, find_videos

_CODES = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX|X)$")
_FRAMES = ("VideoFlash", "VideoMP4", "VideoMp4", "frames", "faces")
_TESTED = ((1001, 1018), (1019, 1036), (1037, 1054), (1055, 1072), (1073, 1091))  # actors, by fold


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    folder = find_folder(root, where.frames, _FRAMES, "clips", "--frames-folder")
    listing = Listing({"train": [], "test": []}, notes=[f"clips of {folder}"])
    first, last = _TESTED[(fold or 1) - 1]
    for path in find_videos(folder):
        stem = path.name if path.is_dir() else path.stem
        match = _NAME.match(stem)
        if match is None or match[3] not in _CODES or not _TESTED[0][0] <= int(match[1]) <= _TESTED[-1][1]:
            listing.faults.append(f"{path.name} is no name such as 1001_DFA_ANG_XX")
            continue
        split = "test" if first <= int(match[1]) <= last else "train"
        listing.splits[split].append(Clip(str(path), _CODES[match[3]], subject=match[1]))
    return listing


LAYOUT = Layout(
    name="cremad",
    title="CREMA-D",
    class_names=tuple(_CODES.values()),
    num_folds=len(_TESTED),
    is_root=lambda root: any(_NAME.match(path.stem) for name in _FRAMES for path in (root / name).glob("1*_*")),
    read=_read,
    totals={(1, "train"): 5979, (1, "test"): 1463},
)
