"""One provider in a process of its own: for its peak of resident memory, and to time two commits in turns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.measure.harness import time_once
from bench.measure.results import ROOT


class Worker:
    """A child process that takes one step of ``provider`` whenever it is told to.

    Args:
        case: name of the case.
        point: name of the point.
        provider: name of the provider.
        root: folder that holds the packages ``bench`` and ``fe_adapter`` to use.
    """

    def __init__(self, case: str, point: str, provider: str, root: Path = ROOT) -> None:
        command = [sys.executable, "-m", "bench.measure.worker", case, point, provider]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)

    def step(self) -> float:
        """Take a step; its seconds."""
        return float(self._ask("step"))

    def close(self) -> int:
        """End the process; the most bytes of memory it ever held."""
        peak = int(self._ask("end"))
        self.process.communicate()
        return peak

    def _ask(self, request: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's child process ended with code {self.process.wait()}")
        return answer


def peak_rss(case: str, point: str, provider: str, steps: int = 2) -> int:
    """Peak resident bytes of a process that does nothing but ``steps`` steps of ``provider``."""
    worker = Worker(case, point, provider)
    for _ in range(steps):
        worker.step()
    return worker.close()


def main(case_name: str, point_name: str, provider_name: str) -> None:
    """What the child does."""
    from bench.cases import get_cases  # not before it is needed: a case asks for this module

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = get_cases()[case_name]
    points = {str(point): point for quick in (True, False) for point in case.points(device, quick)}
    point = points[point_name]
    torch.manual_seed(0)
    contender = case.providers(point, device)[provider_name].build()
    for request in sys.stdin:
        if request == "end\n":
            break
        print(time_once(contender), flush=True)
    print(_peak_resident(), flush=True)


def _peak_resident() -> int:
    """The most bytes this program held: `getrusage` counts its parent's, when it was started. Linux only, else 0."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
