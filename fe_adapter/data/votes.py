"""Soft labels: how many people saw which emotion in a clip, as shares of the classes in the place of one label."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fe_adapter.data.listing import Clip, path_in_csv, read_csv
from fe_adapter.errors import InputError, some


def with_votes(clips: Sequence[Clip], votes: Mapping[str, Mapping[str, float]], source: str) -> list[Clip]:
    """The clips with their votes, which ``votes`` has by path and class.

    Raises:
        InputError: a clip has none, or one that is no count.
    """
    lost = [clip.path for clip in clips if clip.path not in votes]
    if lost:
        raise InputError(f"{source} has no votes for {len(lost)} clips: {some(lost)}")
    found = []
    for clip in clips:
        own = votes[clip.path]
        if not all(0 <= count < math.inf for count in own.values()) or not sum(own.values()) > 0:
            raise InputError(
                f"{source}, {clip.path}: votes {', '.join(map(str, own.values()))} are no counts of people"
            )
        found.append(dataclasses.replace(clip, votes=tuple(own.items())))
    return found


def csv_votes(file: Path, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The votes of a CSV file with a column for every class, by path and class.

    Raises:
        InputError: a class has no column, or a value is no number.
    """
    columns, rows = read_csv(file)
    lost = [name for name in class_names if name.lower() not in columns]
    if lost:
        raise InputError(f"{file} has no column of votes for {some(lost)}; soft labels need one for every class")
    found = {}
    for line, row in rows:
        try:
            votes = {name: float(row.get(name.lower()) or 0) for name in class_names}
            found[path_in_csv(file, row["path"])] = votes
        except ValueError:
            raise InputError(f"{file}, line {line}: a vote is no number") from None
    return found


def shares(clips: Sequence[Clip], class_names: Sequence[str]) -> Tensor | None:
    """``(n, C)`` float32: of every clip, the share of the votes that each class has; None where there are no votes."""
    if not clips or not all(clip.votes for clip in clips):
        return None
    counts = torch.tensor([[dict(clip.votes).get(name, 0.0) for name in class_names] for clip in clips])
    return counts / counts.sum(1, keepdim=True)
