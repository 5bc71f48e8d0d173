"""Published data sets by name, ``dfew:ROOT``: one file each, with its layout, its traps and its published counts."""

from __future__ import annotations

import os
from pathlib import Path

from fe_adapter.data.layouts import afew, cremad, dfew, ferv39k, lists, mafw, ravdess
from fe_adapter.data.layouts.layout import Layout, Listing, Where
from fe_adapter.errors import InputError

__all__ = ["LAYOUTS", "Layout", "Listing", "Where", "check_fold", "find_layout", "read_listing"]

LAYOUTS = {module.LAYOUT.name: module.LAYOUT for module in (dfew, ferv39k, mafw, cremad, ravdess, afew, lists)}


def find_layout(data: str | os.PathLike[str]) -> tuple[Layout, Path] | None:
    """The layout and the root that ``NAME:ROOT`` stands for; None where ``data`` is a path and nothing else.

    Raises:
        InputError: there is no data set of that name, and no such path either.
    """
    text = os.fspath(data)
    name, colon, root = text.partition(":")
    if not colon or os.path.exists(text):  # noqa: PTH110 (it may be no path)
        return None
    if name in LAYOUTS:
        return LAYOUTS[name], Path(root)
    if name.isalnum() and len(name) > 1:  # of one letter it is a drive
        raise InputError(f"{text}: no such file or folder, and no data set {name!r}; known are {', '.join(LAYOUTS)}")
    return None


def check_fold(layout: Layout, fold: int | None) -> None:
    """Raise `InputError` unless ``fold`` is one of the data set's, or it has none and none is asked for."""
    if layout.num_folds == 0 and fold is not None:
        raise InputError(f"{layout.title} has one official split and no folds; leave --fold out")
    if layout.num_folds and (fold is None or not 1 <= fold <= layout.num_folds):
        given = "no fold is given" if fold is None else f"fold={fold}"
        raise InputError(f"{given}, and {layout.title} has {layout.num_folds}; --fold takes 1 to {layout.num_folds}")


def read_listing(layout: Layout, root: Path, fold: int | None, where: Where) -> Listing:
    """What the lists of a fold say of a root, with whatever is wrong in it.

    Raises:
        InputError: the root is not there, is of another data set, or its lists cannot be read at all.
    """
    check_fold(layout, fold)
    if not root.exists():
        raise InputError(f"{root}: no such folder")
    if root.is_file() and layout.name != "list":
        raise InputError(f"{root} is a file, where {layout.name}:ROOT takes the folder of a copy of {layout.title}")
    is_told = where.frames is not None or where.lists is not None
    if layout.name != "list" and not is_told and not layout.is_root(root):
        other = next((other for other in LAYOUTS.values() if other.is_root(root)), None)
        advice = f"it looks like {other.title}: {other.name}:{root}" if other else "is it the root of the copy?"
        raise InputError(f"{root} is no copy of {layout.title}; {advice}")
    return layout.read(root, fold, where)
