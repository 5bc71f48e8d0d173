"""Steps captured as CUDA graphs, on a CUDA that is not there; and values that are read late."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fe_adapter.errors import InputError
from fe_adapter.train import TrainConfig
from fe_adapter.train.step import Late, Step
from tests.imitated import outcomes

CASES = re.findall(r"^@case\ndef (\w+)", Path(__file__).with_name("capture_cases.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def found():
    return outcomes("tests.train.capture_cases")


@pytest.mark.parametrize("name", CASES)
def test_on_an_imitated_gpu(found, name):
    assert found[name] == "", found[name]


def test_capture_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="capture='on' cannot be honoured: a CUDA graph needs a GPU"):
        Step(lambda *_: torch.zeros(()), [nn.Parameter(torch.zeros(1))], [], "on", "a CUDA graph needs a GPU")
    with pytest.raises(InputError, match="capture='yes' is not one of"):
        TrainConfig(capture="yes")


def test_late_values_come_in_turn_and_as_they_are():
    late, seen = Late(), []
    exact = torch.tensor(0.1, dtype=torch.float64)
    late.read([torch.tensor(1 / 3), exact], seen.append)
    assert seen == []
    late.read([torch.tensor(2.0)], seen.append)
    assert seen == [[float(torch.tensor(1 / 3)), 0.1]]
    late.flush()
    late.flush()
    assert seen[1:] == [[2.0]]
