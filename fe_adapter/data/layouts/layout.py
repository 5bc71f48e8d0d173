"""What a published data set's layout is: where its lists and clips are, its classes, and what it should hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from fe_adapter.data.listing import Clip

Key = tuple[int | None, str]  # fold (None where there are none) and split


def totals_of(tests: tuple[int, ...], everything: int) -> dict[Key, int]:
    """Clips of every fold and split, where each fold trains on what it does not test on."""
    sizes = enumerate(tests, 1)
    return {key: size for k, n in sizes for key, size in (((k, "test"), n), ((k, "train"), everything - n))}


@dataclasses.dataclass(frozen=True)
class Where:
    """Folders below the root of a data set, where a copy has them under names of its own.

    Args:
        frames: of the clips, frames or videos; None looks for the names that copies go by.
        lists: of the split lists; None likewise.
    """

    frames: str | None = None
    lists: str | None = None


@dataclasses.dataclass
class Listing:
    """What the lists of one fold say.

    Args:
        splits: clips by "train", "val" and "test"; those that are on the disk.
        absent: what lists name and the disk does not hold.
        faults: other things that are wrong, a line each: labels out of range, lines that cannot be read, and the like.
        notes: what was decided on the way, a line each.
        frame_counts: frames that a list promises, by the clip's path; nothing but `fe_adapter.data.check` reads them.
    """

    splits: dict[str, list[Clip]] = dataclasses.field(default_factory=dict)
    absent: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    frame_counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, split: str, name: str, path: str | None, class_name: str, frames: int | None = None) -> None:
        """A line of a list: the clip ``name``, which is at ``path``, or not on the disk."""
        if path is None:
            self.absent.append(name)
            return
        self.splits.setdefault(split, []).append(Clip(path, class_name))
        if frames is not None:
            self.frame_counts[path] = frames


@dataclasses.dataclass(frozen=True)
class Layout:
    """A data set as it is published.

    Args:
        name: on the command line, in front of the root: ``dfew:ROOT``.
        title: its name.
        class_names: the classes in the order of the labels; empty where the lists say them.
        num_folds: of cross-validation, numbered from 1; 0 is one official split.
        is_root: whether a folder looks like a copy of it.
        read: what the lists of a fold (None without folds) say of a root.
        totals: clips of a fold and split, as published; what is not known is not there.
        per_class: likewise by class, in the order of ``class_names``.
        votes: how many people saw which class, by the clip's name and the class; None where that is not published.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    num_folds: int
    is_root: Callable[[Path], bool]
    read: Callable[[Path, int | None, Where], Listing]
    totals: Mapping[Key, int] = dataclasses.field(default_factory=dict)
    per_class: Mapping[Key, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    votes: Callable[[Path], dict[str, dict[str, float]]] | None = None

    def folds(self) -> tuple[int | None, ...]:
        """Every fold; the one None where there are none."""
        return tuple(range(1, self.num_folds + 1)) or (None,)
