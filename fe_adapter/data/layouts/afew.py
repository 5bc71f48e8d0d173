"""Folders like AFEW's (Dhall et al., 2012): ``Train/Angry/000149120.avi``, or a folder of frames in the video's place.

Classes go by any of their names (``Happy``, ``happiness``, ``HAP``); they are the seven, in DFEW's order. The same id
is in several classes, so a clip is its path.
"""

from __future__ import annotations

from pathlib import Path

from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.data.layouts.names import SEVEN, find_class
from fe_adapter.data.listing import SPLIT_NAMES, Clip, clips_by_split
from fe_adapter.errors import InputError


def _read(root: Path, fold: int | None, where: Where) -> Listing:
    root = root / where.frames if where.frames is not None else root
    by_split = clips_by_split(root)
    if None in by_split:
        raise InputError(f"{root} has no folders Train, Val and Test; without them it is no AFEW, give it by its path")
    listing = Listing()
    for split, clips in by_split.items():
        assert split is not None
        listing.splits[split] = []
        for clip in clips:
            own = find_class(clip.class_name, SEVEN)
            if own is None:
                listing.faults.append(f"{split}, {clip.path}: class {clip.class_name!r} is none of {', '.join(SEVEN)}")
            else:
                listing.splits[split].append(Clip(clip.path, own))
    return listing


def _is_root(root: Path) -> bool:
    folders = [path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES]
    inside = {find_class(path.name, SEVEN) for folder in folders for path in folder.iterdir() if path.is_dir()}
    return len(inside - {None}) >= 5


LAYOUT = Layout(name="afew", title="AFEW", class_names=SEVEN, num_folds=0, is_root=_is_root, read=_read)
