"""Run cases, point by point, into one result file."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from collections.abc import Iterator, Sequence

import torch

from bench.cases import get_cases
from bench.measure.case import measure
from bench.measure.results import Record, Results

FIRST = 60  # seconds that a case's first point may take, whose kernels have to be compiled


def run(
    results: Results,
    names: list[str],
    quick: bool = False,
    point: str | None = None,
    only: Sequence[str] = (),
    deadline: float | None = None,
    thorough: bool = True,
) -> Iterator[Record]:
    """Measure what ``results`` does not have yet, and yield each record once it is on disk.

    Cases take turns, each with its most telling point first, so that a run that is cut off has the most of all.

    Args:
        names: of cases.
        quick: their quick points.
        point: only points with this in their name.
        only: providers to measure beside the baseline; none is all.
        deadline: of `time.monotonic`; a point is left out if its case's last one took longer than there is time left,
            a case's first point if `FIRST` does.
        thorough: False leaves out of every point what takes long to prepare.
    """
    took: dict[str, float] = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of_case = ([(name, get_cases()[name], each) for each in get_cases()[name].points(device, quick)] for name in names)
    turns = [each for turn in itertools.zip_longest(*of_case) for each in turn if each is not None]
    turns = [each for each in turns if point is None or point in str(each[2])]
    results.content["planned"] = [f"{name} {chosen}" for name, _, chosen in turns]
    for name, case, chosen in turns:
        if results.has(name, dict(chosen.parameters)):
            continue
        if only:
            chosen = dataclasses.replace(chosen, only=(case.BASELINE, *only))
        if not thorough:
            chosen = dataclasses.replace(chosen, thorough=False)
        start = time.monotonic()
        if deadline is not None and start + took.get(name, FIRST) > deadline:
            continue
        record = measure(name, case, chosen, device)
        took[name] = time.monotonic() - start
        record["seconds"] = round(took[name], 1)
        results.add(record)
        yield record
        gc.collect()  # models of one point are not to be there during the next
        torch.cuda.empty_cache()
