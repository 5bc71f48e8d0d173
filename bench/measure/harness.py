"""What is timed, and how: contenders in turns, medians, and intervals for the ratio of two of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

RESAMPLES = 2000
MIN_ROUNDS = 5  # for an interval: a bootstrap of fewer samples promises too much


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time: ``prepare`` runs outside the clock, ``step`` on what it returned inside.

    Args:
        step: what is timed.
        prepare: makes the argument of ``step``.
        check: raises an AssertionError where the results are not what they should be; run before any timing.
        memory: bytes by what they are, measured after the timing.
    """

    step: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    check: Callable[[], None] = lambda: None
    memory: Callable[[], dict[str, int]] = dict


def time_interleaved(
    contenders: Mapping[str, Contender], rounds: int, warmup: int, label: str
) -> dict[str, list[float]]:
    """Seconds of every round of every contender, in turns, so that a slow moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn in _with_progress(range(-warmup, rounds), label):
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            elapsed = time_once(contenders[name])
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def _with_progress(turns: range, label: str) -> Iterable[int]:
    """``turns``, beside a progress bar where rich is installed: `bench.gpu` runs without it."""
    try:
        from rich.progress import track
    except ImportError:
        return turns
    return track(turns, description=label, transient=True)


def time_once(contender: Contender) -> float:
    """Seconds of one step; on a GPU by its own clock, from an L2 cache that holds nothing of use."""
    prepared = contender.prepare()
    if not torch.cuda.is_available():
        start = time.perf_counter()
        contender.step(prepared)
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    empty_l2()  # also keeps the GPU busy while the step is queued
    start_event.record()
    contender.step(prepared)
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3


def empty_l2() -> None:
    """Leave nothing of use in a GPU's L2 cache; the GPU does so when its turn comes."""
    torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()


class Ratio(NamedTuple):
    """A ratio of two medians, and the ends of its 95 % interval; NaN where there were too few rounds for one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "too few rounds for an interval" if math.isnan(self.low) else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f} ({interval})"


def ratio(numerator: list[float], denominator: list[float], paired: bool = True) -> Ratio:
    """``paired`` samples were taken in turns: the median of the ratio within a round. Else the ratio of the medians.

    The interval is a bootstrap's: rounds, or each side's samples, drawn again, the same way every time.
    """
    import numpy as np  # not before it is needed: timing goes without

    a, b, random = np.asarray(numerator), np.asarray(denominator), np.random.default_rng(0)
    i = random.integers(len(a), size=(RESAMPLES, len(a)))
    if paired:
        value, resampled = np.median(a / b), np.median(a[i] / b[i], axis=1)
    else:
        j = random.integers(len(b), size=(RESAMPLES, len(b)))
        value, resampled = np.median(a) / np.median(b), np.median(a[i], axis=1) / np.median(b[j], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975)) if min(len(a), len(b)) >= MIN_ROUNDS else (math.nan, math.nan)
    return Ratio(float(value), float(low), float(high))


class Graphed:
    """``step`` captured as a CUDA graph: calling it replays that. Inputs and gradients must stay where they are."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self.step = step  # whose tensors the graph reads
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step()

    def __call__(self, _: object) -> None:
        self.graph.replay()
