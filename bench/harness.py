"""Interleaved timing."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.progress import track


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time: ``prepare`` runs outside the clock, ``step`` on what it returned inside."""

    prepare: Callable[[], object]
    step: Callable[[object], object]


def time_interleaved(contenders: Mapping[str, Contender], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of every round of every contender, in turns, so that a slow moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn in track(range(-2, rounds), description=label, transient=True):  # two rounds of warm-up
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            prepared = contenders[name].prepare()
            _synchronize()
            start = time.perf_counter()
            contenders[name].step(prepared)
            _synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
