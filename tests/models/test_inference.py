"""Probabilities batch after batch: read late, in the right precision, and never NaN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fe_adapter.errors import InputError
from fe_adapter.models.inference import OnItsWay, chosen_precision, classify


class Told(nn.Module):
    """Logits that are the video itself; keeps what it was run under."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return video


def test_a_batch_is_read_once_the_next_one_is_under_way():
    model, events = Told(), []

    def batches():
        for i in range(3):
            events.append(f"decode {i}")
            yield i, torch.full((2, 3), float(i))

    for i, rows in classify(model, batches()):
        events.append(f"read {i}")
        assert torch.equal(rows, torch.full((2, 3), 1 / 3))
        assert torch.is_grad_enabled()  # here; where the model runs it is not
    assert events == ["decode 0", "decode 1", "read 0", "decode 2", "read 1", "read 2"]
    assert model.seen == [(False, False)] * 3
    assert list(classify(model, [])) == []


def test_the_rows_are_those_of_softmax_bit_for_bit():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ((_, rows),) = classify(Told(), [(None, logits)])
    assert torch.equal(rows, logits.softmax(-1))
    assert torch.equal(OnItsWay(logits).read(), logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_is_refused(value):
    bad = torch.zeros(2, 3)
    bad[1, 2] = value
    results = classify(Told(), [(0, torch.zeros(2, 3)), (1, bad)])
    assert next(results)[0] == 0
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        next(results)


def test_the_precision_is_as_asked_for_and_else_the_devices_own():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert chosen_precision("auto", cuda, is_in_bf16=False) == "bf16"
        assert chosen_precision("auto", cuda, is_in_bf16=True) == "no"
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
        assert chosen_precision("auto", cuda, is_in_bf16=False) == "no"
    assert chosen_precision("auto", cpu, is_in_bf16=False) == "no"
    assert chosen_precision("fp16", cpu, is_in_bf16=False) == "fp16"
    for precision, ambient, expected in (
        ("auto", False, False),
        ("auto", True, True),  # the caller's
        ("bf16", False, True),
        ("no", True, False),
    ):
        model = Told()
        with torch.autocast("cpu", torch.bfloat16, enabled=ambient):
            list(classify(model, [(0, torch.zeros(1, 2))], precision))
        assert model.seen == [(expected, False)]
    with pytest.raises(InputError, match="precision='half' is not one of 'auto', 'no', 'bf16', 'fp16'"):
        classify(Told(), [], "half")


def test_answers_are_those_of_evaluation_mode_and_modes_stay_as_they_were():
    """`fit` leaves a model in training mode, in which its dropout would answer by chance."""
    told = Told().train()
    told.dropout, told.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
    told.forward = lambda video: told.frozen(told.dropout(video))
    logits = torch.arange(12.0).view(2, 6)
    ((_, rows),) = classify(told, [(None, logits)])
    torch.testing.assert_close(rows, logits.softmax(-1))
    with pytest.raises(TypeError):
        list(classify(told, [(None, None)]))
    assert [told.training, told.dropout.training, told.frozen.training] == [True, True, False]
