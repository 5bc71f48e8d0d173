"""Bound launches, on a CUDA that is not there: a stale one would be a wrong address."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench.host.build import environment, obstacle
from bench.measure.results import ROOT

CASES = re.findall(r"^@case\ndef (\w+)", (ROOT / "tests/kernels/launch_cases.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> str:
    if reason := obstacle():
        pytest.skip(f"no CUDA can be imitated here: {reason}")
    command = [sys.executable, "-m", "tests.kernels.launch_cases"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_on_an_imitated_gpu(said, name):
    assert f"{name}: passed" in said, said
