"""RAVDESS (Livingstone and Russo, 2018), speech: 1,440 clips of 24 actors with one of eight labels.

All is in the name, ``Actor_01/02-01-06-01-02-01-12.mp4``: modality, channel, emotion, intensity, statement, repetition,
actor. The video with sound (01) and the one without (02) are of one performance, so one of them is taken, the one
without where it is there. The six folds are four actors each.
"""

from __future__ import annotations

import re
from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.data.listing import Clip, find_videos
from fe_adapter.errors import InputError

CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])$")
_ACTORS, _PER_FOLD = 24, 4


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    root = root / where.frames if where.frames is not None else root
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    listing = Listing({"train": [], "test": []})
    found: dict[str, tuple[Path, re.Match[str]]] = {}  # by performance
    left_out = again = 0
    for path in find_videos(root):
        match = _NAME.match(path.name if path.is_dir() else path.stem)
        if match is None:
            listing.faults.append(f"{path.relative_to(root)} is no name such as 02-01-06-01-02-01-12")
        elif match[1] == "03" or match[2] == "02":  # sound alone, or song
            left_out += 1
        else:
            performance = match[0][len(match[1]) :]
            again += performance in found
            if performance not in found or match[1] == "02":
                found[performance] = path, match
    taken = sorted({match[1] for _, match in found.values()})
    listing.notes.append(f"modality {' and '.join(taken) or 'none'}; {left_out} of song or sound are left out")
    if again:
        listing.notes.append(f"{again} of the same performances are left out")
    last = (fold or 1) * _PER_FOLD
    for path, match in found.values():
        split = "test" if last - _PER_FOLD < int(match[7]) <= last else "train"
        listing.splits[split].append(Clip(str(path), CLASSES[int(match[3]) - 1], subject=match[7]))
    return listing


def _counts(actors: int) -> tuple[int, ...]:
    """Clips of every class: neutral has no strong intensity."""
    return (4 * actors, *[8 * actors] * (len(CLASSES) - 1))


_FOLDS = _ACTORS // _PER_FOLD
_SIZES = {"train": _ACTORS - _PER_FOLD, "test": _PER_FOLD}
LAYOUT = Layout(
    name="ravdess",
    title="RAVDESS",
    class_names=CLASSES,
    num_folds=_FOLDS,
    is_root=lambda root: next(root.glob("Actor_[0-2][0-9]"), None) is not None,
    read=_read,
    totals={(k, split): 60 * n for k in range(1, _FOLDS + 1) for split, n in _SIZES.items()},
    per_class={(k, split): _counts(n) for k in range(1, _FOLDS + 1) for split, n in _SIZES.items()},
)
