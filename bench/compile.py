"""Every kernel the launch plans can ask for, compiled ahead of time for GPUs that are not there.

The real launchers run on small CPU tensors with recorders in the kernels' place, so what is compiled is what would be
launched. Sizes are run-time arguments: a signature is dtypes, tiles, flags and whether masks are needed, and stands for
every R and D that maps to it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.ahead import Report, compile_call, recorded_calls
from fe_adapter.kernels import conv, fused, plans
from fe_adapter.kernels.spec import AdapterSpec, Weights

BOTTLENECKS = (32, 64, 96, 128, 192, 384, 512, 640)
WIDTHS = (384, 768, 1024, 1280)


@dataclasses.dataclass(frozen=True)
class Case:
    """One adapter to compile for."""

    dtype: torch.dtype = torch.bfloat16
    stream_dtype: torch.dtype | None = None  # of x and y; None is ``dtype``
    dynamic: bool = False
    activation: str = "identity"
    kernel: tuple[int, int, int] = (3, 1, 1)
    bottleneck: int = 384
    width: int = 768

    def __str__(self) -> str:
        stream = "" if self.stream_dtype is None else f" in {_short(self.stream_dtype)} stream"
        kernel = "x".join(map(str, self.kernel))
        dilation = "dynamic" if self.dynamic else "static"
        shape = f"R={self.bottleneck} D={self.width}"
        return f"{_short(self.dtype)}{stream} {dilation} {kernel} {self.activation} {shape}"


CASES = (
    Case(),
    Case(dynamic=True),
    Case(activation="gelu"),
    Case(dynamic=True, activation="silu"),
    Case(stream_dtype=torch.float32),
    Case(stream_dtype=torch.float32, dynamic=True),
    Case(bottleneck=96, width=800),  # masks
    Case(bottleneck=96, width=800, dynamic=True),
    Case(dtype=torch.float16),
    Case(dtype=torch.float32),
    Case(dtype=torch.float32, dynamic=True),
    Case(kernel=(3, 3, 3)),
    Case(kernel=(3, 3, 3), dynamic=True),
)
FAST = (Case(), Case(dynamic=True))


def compile_cases(cases: tuple[Case, ...], targets: tuple[str, ...]) -> Iterator[Report]:
    """A report for every launch of every case on every target; equal signatures are compiled once by Triton's cache."""
    for target in targets:
        for case in cases:
            for kernel, arguments, options in launches(case, "hip" if target.startswith("gfx") else "cuda"):
                yield compile_call(kernel, arguments, options, target, str(case))


def launches(case: Case, platform: str) -> list[tuple[Any, tuple, dict]]:
    """What the launchers of both designs would launch for ``case``, forward and backward."""
    B, T, N, P, D, R = 2, 8, 196, 1, case.width, case.bottleneck
    spec = AdapterSpec(2, None, case.activation, P, (14, 14), case.dtype)
    x = torch.empty(B, T, P + N, D, dtype=case.stream_dtype or case.dtype)
    shapes = Weights((R, D), (R,), (R, 1, *case.kernel), (R,), (D, R), (D,), (3, R), (1,))  # type: ignore[arg-type]
    weights = Weights(*(torch.empty(shape, dtype=case.dtype) for shape in shapes))  # type: ignore[arg-type]
    if not case.dynamic:
        weights = weights._replace(dilation=None, dilation_bias=None)
    h = torch.empty(B, T, N, R, dtype=case.dtype)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(plans, "platform", return_value=platform))
        stack.enter_context(mock.patch.object(fused, "precision", return_value="tf32"))  # without it fp32 is for gemm
        calls = stack.enter_context(recorded_calls(conv))
        rows = conv.activated_rows(h, weights, spec)
        _, dc, state = conv.backward_activation(torch.empty_like(h), h, weights, spec)
        conv.backward_hidden(dc, h, weights, spec, rows, state)
        if case.kernel[1:] == (1, 1):
            more = stack.enter_context(recorded_calls(fused))
            fused.forward(x, weights, spec)
            fused.backward(x, h, weights, spec, needs_dx=True)
            calls = [*calls, *more]
    return calls


def problems(report: Report) -> list[str]:
    """What keeps a report from being clean."""
    found = []
    if report.spilled:
        found.append(f"spills {report.spilled} B a thread")
    if report.smem > report.smem_limit:
        found.append(f"shared memory {report.smem} B is over {report.smem_limit} B")
    is_fused = report.kernel.startswith("fused")
    if is_fused and not report.tensor_core:
        found.append("no tensor-core instruction")
    if is_fused and report.barriers < (2 if "fwd" in report.kernel else 3):
        found.append(f"{report.barriers} block barriers between the phases")
    if report.is_serialized:
        found.append("the tensor-core products are serialised (C7515)")
    return found


def signatures() -> list[tuple[int, int, str]]:
    """Which compiled variant of the fused kernels serves each R and D: (R, D, "even" or "masked")."""
    plan = plans.FUSED["cuda"][2, 2]
    return [(R, D, "even" if plan.options(D, R)["EVEN"] else "masked") for R in BOTTLENECKS for D in WIDTHS]


def write_csv(reports: list[Report], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Report)] + ["problems"])
        writer.writeheader()
        writer.writerows({**dataclasses.asdict(report), "problems": "; ".join(problems(report))} for report in reports)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
