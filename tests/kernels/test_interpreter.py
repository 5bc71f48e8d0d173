"""The Triton kernels in Triton's interpreter, against float64, with every access checked.

Triton decides at import whether it interprets, so the cases run in a process of their own, all at once; here each of
them is reported as a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tests.kernels.kernel_cases import CASES, SLOW_CASES

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> dict[str, str]:
    """What became of every case: "" or the failure."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.kernels.kernel_cases", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def outcomes():
    return run()


@pytest.fixture(scope="session")
def slow_outcomes():
    return run("slow")


@pytest.mark.parametrize("case", CASES)
def test_in_the_interpreter(case, outcomes):
    assert outcomes[case] == "", outcomes[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_in_the_interpreter_at_length(case, slow_outcomes):
    assert slow_outcomes[case] == "", slow_outcomes[case]
