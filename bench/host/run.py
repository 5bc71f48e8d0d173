"""Host times and counts, measured in a process that sees the imitated CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bench.host.build import environment
from bench.measure.results import ROOT
from fe_adapter.checks import check_choice

CASES = ("layer", "step", "fit")


def measured(case: str, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """By title and contender, what `bench.host.measure` found.

    Raises:
        InputError: there is no such case, or no such CUDA can be built here.
        RuntimeError: the process failed; the message is the end of what it said.
    """
    check_choice("case", case, CASES)
    command = [sys.executable, "-m", "bench.host.measure", case, str(rounds)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench.host.measure {case} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
