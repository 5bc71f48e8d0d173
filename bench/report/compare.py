"""How two series of times compare: providers of one point, two result files, or two commits in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.cases import get_cases
from bench.measure.harness import in_turns
from bench.measure.results import ROOT, Record, point_name, read_results
from bench.measure.worker import Worker
from fe_adapter.errors import InputError

RESAMPLES = 2000
MIN_ROUNDS = 5  # for an interval: a bootstrap of fewer samples promises too much


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
    a, b, random = np.asarray(numerator), np.asarray(denominator), np.random.default_rng(0)
    i = random.integers(len(a), size=(RESAMPLES, len(a)))
    if paired:
        value, resampled = np.median(a / b), np.median(a[i] / b[i], axis=1)
    else:
        j = random.integers(len(b), size=(RESAMPLES, len(b)))
        value, resampled = np.median(a) / np.median(b), np.median(a[i], axis=1) / np.median(b[j], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975)) if min(len(a), len(b)) >= MIN_ROUNDS else (math.nan, math.nan)
    return Ratio(float(value), float(low), float(high))


def between(record: Record, name: str, other: str | None = None) -> Ratio:
    """Time of one provider over that of another, or of the baseline."""
    providers = record["providers"]
    return ratio(providers[name]["ms"], providers[record["baseline"] if other is None else other]["ms"])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One provider at one point: new time over old."""

    case: str
    point: str
    provider: str
    ratio: Ratio

    def is_slower(self, allowed: float) -> bool:
        """Whether even the low end of the interval is above ``allowed``."""
        return self.ratio.low > allowed


def compare_files(old: Path, new: Path) -> tuple[list[Comparison], list[str]]:
    """Every provider at every point that both files have; and what was measured in the old one only.

    Raises:
        InputError: they were measured on different devices, have nothing in common, or are no result files.
    """
    contents = [read_results(path) for path in (old, new)]
    devices = [(content["machine"]["device"], content["machine"]["threads"]) for content in contents]
    if devices[0] != devices[1]:
        raise InputError(
            f"{old} was measured on {devices[0]}, {new} on {devices[1]}; times of two machines do not compare"
        )
    before, after = (
        {
            (record["case"], point_name(record), name): provider["ms"]
            for record in content["records"]
            for name, provider in record["providers"].items()
        }
        for content in contents
    )
    found = [Comparison(*key, ratio(after[key], before[key], paired=False)) for key in before if key in after]
    if not found:
        raise InputError(f"{old} and {new} have no point in common")
    return found, [" ".join(key) for key in before if key not in after]


def compare_commits(old: str, new: str, case_name: str, rounds: int, quick: bool) -> Iterator[Comparison]:
    """The library of two commits under this checkout's benchmark: our providers, a process for each, taking turns.

    Raises:
        InputError: one of the two is no commit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = get_cases()[case_name]
    with _checkout(old) as old_root, _checkout(new) as new_root:
        for point in case.points(device, quick):
            for name, provider in case.providers(point, device).items():
                if provider.role != "ours":
                    continue
                workers = [Worker(case_name, str(point), name, root) for root in (old_root, new_root)]
                clocks = {side: worker.step for side, worker in zip(("old", "new"), workers, strict=True)}
                seconds = in_turns(clocks, rounds, point.warmup, f"{name} {point}")
                for worker in workers:
                    worker.close()
                yield Comparison(case_name, str(point), name, ratio(seconds["new"], seconds["old"]))


@contextlib.contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A folder with the ``fe_adapter`` and ``kernels`` of ``commit`` and the ``bench`` that is running."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        try:
            _git("worktree", "add", "--detach", str(tree), commit)
        except subprocess.CalledProcessError as error:
            raise InputError(f"{commit!r} is neither a file nor a commit: {error.stderr.strip()}") from None
        try:
            root = Path(folder) / "root"
            root.mkdir()
            (root / "bench").symlink_to(ROOT / "bench")
            (root / "fe_adapter").symlink_to(tree / "fe_adapter")
            yield root
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
