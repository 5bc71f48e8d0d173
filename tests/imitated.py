"""Cases that run in a process of their own, where PyTorch and Triton see a CUDA that is not there: `bench.host.build`.

A module of cases decorates its functions with `case` and ends in `main()`; a module of tests calls `outcomes` once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable

import pytest

from bench.host.build import environment, obstacle
from bench.measure.results import ROOT

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Add ``function`` to the cases of this process."""
    CASES[function.__name__] = function
    return function


def main() -> None:
    """Run the cases, and print what became of each: "" or the failure."""
    found = {}
    for name, function in CASES.items():
        try:
            function()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found), flush=True)
    os._exit(0)  # PyTorch's threads for the imitated device do not always end in good order


def outcomes(module: str) -> dict[str, str]:
    """What ``module``, run as a program, says of its cases; skips where there is no imitation."""
    if reason := obstacle():
        pytest.skip(f"no CUDA can be imitated here: {reason}")
    done = subprocess.run([sys.executable, "-m", module], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
