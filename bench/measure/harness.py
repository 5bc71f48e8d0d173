"""What is timed, and how: contenders in turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


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


def in_turns(clocks: Mapping[str, Callable[[], float]], rounds: int, warmup: int, label: str) -> dict[str, list[float]]:
    """What every clock says every round, in a rotating order: a slow moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    order = list(clocks)
    for turn in _with_progress(range(-warmup, rounds), label):
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            elapsed = clocks[name]()
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
