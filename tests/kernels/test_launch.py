"""Bound launches, on a CUDA that is not there: a stale one would be a wrong address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tests.imitated import outcomes

CASES = re.findall(r"^@case\ndef (\w+)", Path(__file__).with_name("launch_cases.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def found():
    return outcomes("tests.kernels.launch_cases")


@pytest.mark.parametrize("name", CASES)
def test_on_an_imitated_gpu(found, name):
    assert found[name] == "", found[name]
