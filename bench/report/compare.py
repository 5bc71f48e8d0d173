"""Two result files, or two commits in one run: ratio of times with a 95 % interval, and what got slower."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track

from bench.cases import get_cases
from bench.measure.harness import Ratio, ratio
from bench.measure.results import ROOT, is_suite
from bench.measure.worker import Worker
from fe_adapter.errors import InputError
from fe_adapter.files import read_json


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
    contents = [read_json(path) for path in (old, new)]
    for path, content in zip((old, new), contents, strict=True):
        if not is_suite(content):
            raise InputError(f"{path} is no result file")
    devices = [(content["machine"]["device"], content["machine"]["threads"]) for content in contents]
    if devices[0] != devices[1]:
        raise InputError(
            f"{old} was measured on {devices[0]}, {new} on {devices[1]}; times of two machines do not compare"
        )
    times: list[dict[tuple[str, str, str], list[float]]] = [
        {
            (record["case"], " ".join(f"{k}={v}" for k, v in record["point"].items()), name): provider["ms"]
            for record in content["records"]
            for name, provider in record["providers"].items()
        }
        for content in contents
    ]
    found = [Comparison(*key, ratio(times[1][key], times[0][key], paired=False)) for key in times[0] if key in times[1]]
    if not found:
        raise InputError(f"{old} and {new} have no point in common")
    return found, [" ".join(key) for key in times[0] if key not in times[1]]


def compare_commits(old: str, new: str, case_name: str, rounds: int, quick: bool) -> Iterator[Comparison]:
    """The library of two commits under this checkout's benchmark: our providers, a process for each, taking turns.

    Raises:
        InputError: one of the two is no commit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = get_cases()[case_name]
    with _checkout(old) as old_root, _checkout(new) as new_root:
        for point in case.points(device, quick):
            ours = [name for name, provider in case.providers(point, device).items() if provider.role == "ours"]
            for name in ours:
                workers = [Worker(case_name, str(point), name, root) for root in (old_root, new_root)]
                seconds: list[list[float]] = [[], []]
                for turn in track(range(-point.warmup, rounds), f"{name} {point}", transient=True):
                    for i in (0, 1) if turn % 2 else (1, 0):
                        elapsed = workers[i].step()
                        if turn >= 0:
                            seconds[i].append(elapsed)
                for worker in workers:
                    worker.close()
                yield Comparison(case_name, str(point), name, ratio(seconds[1], seconds[0]))


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
