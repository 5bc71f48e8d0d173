"""A case: which points to measure, and which providers to measure there. Each is one file in `bench.cases`."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from bench.measure.harness import Contender, in_turns, time_once
from bench.measure.results import Record
from fe_adapter.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # by their names in points


class SkippedError(Exception):
    """A provider cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """One way to do the work of a case.

    Args:
        build: a `Contender` for one point; raises `SkippedError` where it cannot run.
        role: "ours"; "design", ours whatever the launch plans would choose; "rival", which does the same work
            another way; or "floor", which does less and so is no rival.
    """

    build: Callable[[], Contender]
    role: str = "rival"


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of a case: a row of its results for every provider.

    Args:
        parameters: sizes and modes, by name.
        rounds: how often every provider is timed.
        warmup: rounds before that.
        thorough: also what takes long to prepare or holds much: compiled providers, processes of their own.
        only: providers to measure; None is all.
    """

    parameters: Mapping[str, Any]
    rounds: int
    warmup: int = 2
    thorough: bool = False
    only: tuple[str, ...] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())


class Case(Protocol):
    """What a module in `bench.cases` offers; its docstring is the title."""

    BASELINE: str  # the provider that ratios are taken to

    def points(self, device: torch.device, quick: bool) -> Sequence[Point]:
        """What to measure on ``device``, the most telling first; ``quick``: in seconds."""

    def providers(self, point: Point, device: torch.device) -> Mapping[str, Provider]:
        """What to measure at ``point``, on the same inputs and weights."""


def measure(case_name: str, case: Case, point: Point, device: torch.device) -> Record:
    """One record of the results: times and memory of every provider at ``point``, or who failed, and no figure.

    Each provider first shows that its results are right; if one is wrong, nothing is timed.

    Raises:
        InputError: ``point.only`` names a provider that is not there.
    """
    record: Record = {
        "case": case_name,
        "point": dict(point.parameters),
        "baseline": case.BASELINE,
        "command": f"python -m bench {case_name} --point {shlex.quote(str(point))}",
        "providers": {},
        "skipped": {},
        "failures": {},
        "seconds": 0.0,
    }
    try:
        providers = case.providers(point, device)
    except (ImportError, torch.OutOfMemoryError) as reason:
        record["skipped"]["all of them"] = _why(reason)
        return record
    unknown = set(point.only or ()) - set(providers)
    if unknown:
        raise InputError(f"{case_name} has no provider {unknown.pop()!r} at {point}; it has {', '.join(providers)}")
    contenders: dict[str, Contender] = {}
    roles = {}
    for name, provider in providers.items():
        if point.only is not None and name not in point.only:
            continue
        torch.manual_seed(0)  # the same weights whoever else is there
        try:
            contender = provider.build()
            contender.check()
        except (SkippedError, ImportError, torch.OutOfMemoryError) as reason:
            record["skipped"][name] = _why(reason)
        except Exception as error:  # whatever it is, the others' points are to be measured
            record["failures"][name] = _in_a_line(error)
        else:
            contenders[name], roles[name] = contender, provider.role
    if record["failures"] or case.BASELINE not in contenders:
        return record
    try:
        clocks = {name: partial(time_once, contender) for name, contender in contenders.items()}
        seconds = in_turns(clocks, point.rounds, point.warmup, f"{case_name} {point}")
    except torch.OutOfMemoryError:
        record["failures"]["all of them side by side"] = "out of memory"
        return record
    except RuntimeError as error:  # a launch that fails, say
        record["failures"]["one of them, while it was timed"] = _in_a_line(error)
        return record
    for name, contender in contenders.items():
        record["providers"][name] = {
            "role": roles[name],
            "ms": [_rounded(1e3 * s) for s in seconds[name]],
            "bytes": contender.memory(),
        }
    return record


def _why(reason: Exception) -> str:
    """Why something was skipped."""
    if isinstance(reason, ImportError):
        return f"{reason.name} is not installed"
    return "out of memory" if isinstance(reason, torch.OutOfMemoryError) else str(reason)


def _in_a_line(error: Exception) -> str:
    """What an error says; its kind, too, if it is no check that failed."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, AssertionError) else f"{type(error).__name__}: {line}"


def _rounded(value: float) -> float:
    """Five digits are more than any clock here knows."""
    return round(value, 4 - math.floor(math.log10(value)))
