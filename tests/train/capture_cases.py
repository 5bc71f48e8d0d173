"""What `tests.train.test_step` runs where PyTorch sees a CUDA that is not there: graphs are captured, not computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter.errors import InputError
from fe_adapter.train.step import Late, Step
from tests.imitated import case, main

REASONS: list[str] = []
OBSTACLE = None


class _Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        REASONS.append(record.getMessage())


class Model:
    """A linear layer and a dropout, trained; counts how often Python runs it."""

    def __init__(self, forward: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        self.layer, self.calls, self.forward = nn.Linear(4, 3, device="cuda"), 0, forward

    def __call__(self, video: Tensor, target: Tensor, weight: Tensor | float) -> Tensor:
        self.calls += 1
        loss = F.cross_entropy(F.dropout(self.forward(self.layer(video))), target)
        (loss * weight).backward()
        return loss.detach()

    def step(self, capture: str = "auto") -> Step:
        return Step(self, list(self.layer.parameters()), list(self.layer.buffers()), capture, OBSTACLE)


def batch(size: int, width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.zeros(size, width, device="cuda"), torch.zeros(size, dtype=torch.long, device="cuda")


@case
def a_batch_is_replayed_and_its_gradients_stay_where_they_are() -> None:
    model = Model()
    step = model.step()
    step(*batch(8), 1.0)
    captured, gradients = model.calls, [p.grad for p in model.layer.parameters()]
    for _ in range(3):
        loss = step(*batch(8), 0.5)
    assert model.calls == captured
    assert loss.shape == ()
    assert all(p.grad is g for p, g in zip(model.layer.parameters(), gradients, strict=True))


@case
def a_short_batch_runs_as_it_is_and_few_shapes_are_captured() -> None:
    model = Model()
    step = model.step()
    step(*batch(8), 1.0)
    captured = model.calls
    for times in (1, 2):
        step(*batch(5), 1.0)
        assert model.calls == captured + times
    for size in (9, 10):
        step(*batch(size), 1.0)
        step(*batch(size), 1.0)
    assert model.calls == 3 * captured + 2
    step(*batch(11), 1.0)
    step(*batch(11), 1.0)
    assert model.calls == 3 * captured + 4
    step(*batch(8), 1.0)
    assert model.calls == 3 * captured + 4


@case
def random_numbers_are_those_of_a_step_that_is_not_captured() -> None:
    states = []
    for capture in ("off", "auto"):
        step = Model().step(capture)
        for seed in (1, 2):
            torch.manual_seed(seed)
            step(*batch(8), 1.0)
            states.append(torch.cuda.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(states[:2], states[2:], strict=True))


@case
def a_module_that_waits_runs_as_it_is_and_its_line_is_named() -> None:
    def forward(z: Tensor) -> Tensor:
        return z * float(z.sum().item() < 0)

    REASONS.clear()
    model = Model(forward)
    step = model.step()
    for _ in range(2):
        step(*batch(8), 1.0)
    assert not step.is_capturing
    assert sum("synchronizing" in reason and "z.sum().item()" in reason for reason in REASONS) == 1, REASONS
    with pytest.raises(InputError, match=r"^capture='on' cannot be honoured: .*synchronizing.*item\(\).*$"):
        Model(forward).step("on")(*batch(8), 1.0)


@case
def of_a_wait_within_pytorch_the_line_of_the_user_is_named() -> None:
    def forward(z: Tensor) -> Tensor:
        return z * len(torch.unique(z))  # which waits for how many there are

    with pytest.raises(InputError, match=r"at 'return z \* len\(torch.unique\(z\)\)"):
        Model(forward).step("on")(*batch(8), 1.0)


@case
def a_batch_that_is_refused_is_no_refusal_of_the_capture() -> None:
    def forward(z: Tensor) -> Tensor:
        raise InputError("the backbone takes frames of 48x48")

    REASONS.clear()
    for capture in ("auto", "on"):
        step = Model(forward).step(capture)
        with pytest.raises(InputError, match=r"^the backbone takes frames of 48x48$"):
            step(*batch(8), 1.0)
        assert step.is_capturing
    assert not REASONS


@case
def what_runs_before_a_capture_leaves_buffers_as_they_were() -> None:
    """All but those that cannot be written to."""
    model = Model()
    model.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to("cuda")
    model.layer.register_buffer("mask", torch.zeros(1, device="cuda").expand(4))
    with torch.inference_mode():
        model.layer.register_buffer("constant", torch.zeros(4, device="cuda"))
    with mock.patch.object(torch, "_foreach_copy_", wraps=torch._foreach_copy_) as copy:
        model.step("on")(*batch(8), 1.0)
    written = {tensor.data_ptr() for tensor in copy.call_args.args[0]}
    assert {name for name, buffer in model.layer.named_buffers() if buffer.data_ptr() in written} == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip


@case
def what_does_not_fit_runs_as_it_is() -> None:
    def forward(z: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return z

    REASONS.clear()
    step = Model(forward).step()
    for _ in range(2):
        step(*batch(8), 1.0)
    assert not step.is_capturing
    assert sum("does not fit the GPU's memory" in reason for reason in REASONS) == 1, REASONS


@case
def values_are_read_a_step_late() -> None:
    late, seen = Late(), []
    for i in range(3):
        late.read([torch.zeros((), device="cuda")], lambda values, i=i: seen.append((i, len(values))))
        assert seen == [(k, 1) for k in range(i)]
    late.flush()
    assert seen == [(0, 1), (1, 1), (2, 1)]


if __name__ == "__main__":
    logging.getLogger("fe_adapter").addHandler(_Keep())
    main()
