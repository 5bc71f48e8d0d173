"""Contenders that are modules on tokens: their forward pass, backward pass, or both."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.measure.case import DTYPES, Point, SkippedError
from bench.measure.harness import Contender, Graphed
from bench.proof.agreement import PLAIN_SLACK, Expected, assert_within, expect, pair, settled_pair
from fe_adapter import FEAdapter, FusedFEAdapter
from fe_adapter.memory.measure import measure_peak_memory, measure_saved_memory

ST_ADAPTER_NAMES = {"fc1": "down_proj", "conv": "temporal_conv", "fc2": "up_proj"}


@dataclasses.dataclass(frozen=True)
class Work:
    """What modules are timed on.

    Args:
        leaf: the input (B*T, L, D), a leaf that asks for a gradient.
        dy: the gradient of the output.
        part: "forward", "backward" or "both".
        expected: by reference, what it gives: many modules have the same.
    """

    leaf: Tensor
    dy: Tensor
    part: str
    expected: dict[nn.Module, dict[str, Expected]] = dataclasses.field(default_factory=dict)

    @classmethod
    def random(cls, shape: tuple[int, ...], part: str, device: torch.device, dtype: torch.dtype) -> Work:
        x, dy = torch.randn(2, *shape, device=device).to(dtype)
        return cls(x.requires_grad_(), dy, part)

    def contender(self, module: nn.Module, reference: nn.Module) -> Contender:
        """``module`` at work; its results must agree with those of ``reference`` in float64."""

        def prepare() -> Tensor:
            module.zero_grad(set_to_none=True)
            self.leaf.grad = None
            x = self.leaf.clone()  # as in a network: the input is no leaf, and ST-Adapter may overwrite it
            return module(x) if self.part == "backward" else x

        def step(prepared: Tensor) -> None:
            y = prepared if self.part == "backward" else module(prepared)
            if self.part != "forward":
                y.backward(self.dy)

        def memory() -> dict[str, int]:
            if self.part != "both":
                return {}
            saved = measure_saved_memory(module, prepare())
            return {"saved": saved, "peak": measure_peak_memory(partial(step, prepare()))}

        return Contender(step, prepare, partial(self._check, module, reference), memory)

    def graphed_contender(self, module: nn.Module, reference: nn.Module) -> Contender:
        """Forward and backward of ``module`` as one CUDA graph, the copy of its input included; checked likewise."""
        outputs: list[Tensor] = []

        def step() -> None:
            module.zero_grad(set_to_none=True)
            self.leaf.grad = None
            y = module(self.leaf.clone())
            y.backward(self.dy)
            outputs[:] = [y.detach()]

        graphed, peak = graph_and_peak(step)
        gradients = [
            self.leaf.grad,
            *(p.grad for p in module.parameters() if p.requires_grad),
        ]  # where a replay leaves them

        def check() -> None:
            graphed(None)
            self._check_results(dict(zip(_names(module), [*outputs, *gradients], strict=True)), reference)

        return Contender(graphed, check=check, memory=lambda: {"peak": peak})

    def _check(self, module: nn.Module, reference: nn.Module) -> None:
        self._check_results(_results(module, self.leaf, self.dy), reference)

    def _check_results(self, results: dict[str, Any], reference: nn.Module) -> None:
        if reference not in self.expected:
            self.expected[reference] = expect(reference, self.leaf.detach(), self.dy, self.leaf.dtype, run=_results)
        assert_within(results, self.expected[reference], PLAIN_SLACK)


def graph_and_peak(step: Callable[[], Any]) -> tuple[Graphed, int]:
    """``step`` as a CUDA graph, and the bytes that it held at its peak while it was captured."""
    made: list[Graphed] = []
    peak = measure_peak_memory(lambda: made.append(Graphed(step)))
    return made[0], peak


Pair = tuple[FEAdapter, FusedFEAdapter]  # with the same weights


def at_work(point: Point, device: torch.device, part: str) -> tuple[Work, Pair, Pair]:
    """What every provider of a layer's point shares: random tokens, a static and a dynamic adapter."""
    if point.thorough:
        torch._dynamo.reset()  # what other points compiled counts towards its limit
    B, T, N, D, R = (point[name] for name in "BTNDR")
    options: dict[str, Any] = {"num_frames": T, "device": device, "dtype": DTYPES[point["dtype"]]}
    torch.manual_seed(0)
    work = Work.random((B * T, N + 1, D), part, device, options["dtype"])
    return work, pair(D, R, dilation=1, **options), settled_pair(D, R, **options)


def compiled(module: nn.Module) -> nn.Module:
    """``module`` by `torch.compile`, without graph breaks.

    Raises:
        SkippedError: there is no C++ compiler, which a CPU needs.
    """
    if next(module.parameters()).device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise SkippedError("torch.compile needs a C++ compiler")
    return cast(nn.Module, torch.compile(module, fullgraph=True))


def _results(module: nn.Module, leaf: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output and every gradient, by the names of `FEAdapter`."""
    leaf = leaf.detach().requires_grad_()
    y = module(leaf.clone())
    gradients = torch.autograd.grad(y, (leaf, *(p for p in module.parameters() if p.requires_grad)), dy)
    return dict(zip(_names(module), (y.detach(), *gradients), strict=True))


def _names(module: nn.Module) -> tuple[str, ...]:
    return ("y", "x", *(common_name(name) for name, p in module.named_parameters() if p.requires_grad))


def common_name(name: str) -> str:
    """A parameter's name without what compiling puts into it, and as `FEAdapter` has it."""
    return ".".join(ST_ADAPTER_NAMES.get(part, part) for part in name.split(".") if part != "_orig_mod")
