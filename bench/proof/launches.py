"""Every kernel the launch plans can ask for, compiled ahead of time for GPUs that are not there.

The real launchers run on small CPU tensors with recorders in the kernels' place, so what is compiled is what would be
launched. Sizes are run-time arguments: a signature is dtypes, tiles, flags and whether masks are needed, and stands for
every R and D that maps to it. `TABLE` is what the plans choose for any R, dtype and stream of the table; `CASES` go
through every design that can serve them, chosen or only asked for by ``FE_ADAPTER_DESIGN``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from bench.proof.ahead import ARCHS, Report, compile_call, recorded_calls, type_of
from fe_adapter.kernels import cast, conv, fused, gelu2bit, plans, sums
from fe_adapter.kernels.spec import DESIGNS, AdapterSpec, Weights
from fe_adapter.ops.fused import Fused
from fe_adapter.ops.products import Products

BOTTLENECKS = (32, 64, 96, 128, 192, 384, 512, 640)
WIDTHS = (384, 768, 1024, 1280)
EVERY_PLAN = (*BOTTLENECKS, 80, 176, 240, 256, 368, 496)  # go through each, with masks and without
NO_DX = " no dx"


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
    max_dilation: float | None = None
    needs_dx: bool = True
    causal: bool = False

    def __str__(self) -> str:
        stream = "" if self.stream_dtype is None else f" in {_short(self.stream_dtype)} stream"
        kernel = "x".join(map(str, self.kernel))
        dilation = "dynamic" if self.dynamic else "static"
        dilation += "" if self.max_dilation is None else " bounded"
        dilation += " causal" if self.causal else ""
        shape = f"R={self.bottleneck} D={self.width}"
        shape += "" if self.needs_dx else NO_DX
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
    Case(kernel=(5, 1, 1)),
    Case(kernel=(5, 1, 1), dynamic=True, activation="gelu", max_dilation=2.0),
    Case(kernel=(3, 3, 3)),
    Case(kernel=(3, 3, 3), dynamic=True),
    Case(bottleneck=33, width=200),  # rows that are not aligned
    Case(bottleneck=33, width=200, dynamic=True),
    Case(bottleneck=33, width=200, dynamic=True, activation="gelu", max_dilation=2.0, kernel=(3, 3, 3)),
    *(Case(bottleneck=R, dynamic=dynamic) for R in (64, 128, 192, 256, 512) for dynamic in (False, True)),
    *(Case(bottleneck=R - 16, dynamic=True) for R in (64, 128, 192, 256, 384, 512)),
    *(Case(bottleneck=R, dynamic=True, stream_dtype=torch.float32) for R in (64, 128, 192, 256, 512)),
    *(Case(bottleneck=R, dynamic=dynamic, needs_dx=False) for R in (64, 384) for dynamic in (False, True)),
)
HEAVIEST: dict[str, Any] = {
    "dynamic": True,
    "activation": "gelu",
    "max_dilation": 2.0,
}  # takes the most registers, as a rule
FORMS: tuple[
    dict[str, Any], ...
] = (  # gelu, having the most arithmetic, stands for all activations; a bound only adds to a dynamic dilation
    {},
    HEAVIEST,
    {"activation": "gelu"},
    {"dynamic": True},
)
OTHER_ACTIVATIONS = tuple({**HEAVIEST, "activation": name} for name in ("silu", "relu"))  # for it need not be so
PRECISIONS = (  # of the products; of x where that is another; and forms: of fp16, in all else like bf16, two extremes
    (torch.bfloat16, None, FORMS),
    (torch.bfloat16, torch.float32, FORMS),
    (torch.float32, None, FORMS),
    (torch.float16, None, FORMS[:2]),
    (torch.float16, torch.float32, FORMS[:2]),
)
MANY_TAPS = {  # in the form that needs the most registers, by R
    (5, 1, 1): EVERY_PLAN,
    (7, 1, 1): (33, *EVERY_PLAN),
    (15, 1, 1): (384,),
    **dict.fromkeys(((3, 1, 3), (3, 1, 5), (5, 3, 1)), (384,)),
}
TABLE = (
    *(  # one D stands for all WIDTHS, multiples of every tile
        Case(dtype, stream, bottleneck=R, **form)
        for R in EVERY_PLAN
        for dtype, stream, forms in PRECISIONS
        for form in (*forms, {**HEAVIEST, "needs_dx": False})
    ),
    *(
        Case(dtype, kernel=(3, 3, 3), **form)
        for dtype, stream, forms in PRECISIONS
        for form in (*forms, *OTHER_ACTIVATIONS)
        if stream is None
    ),
    *(
        Case(dtype, stream, bottleneck=R, **form)
        for R in (96, 384)
        for dtype, stream, _ in PRECISIONS
        for form in OTHER_ACTIVATIONS
        if dtype != torch.float16
    ),
    *(
        Case(dtype, stream, bottleneck=R, kernel=kernel, **HEAVIEST)
        for kernel, bottlenecks in MANY_TAPS.items()
        for R in bottlenecks
        for dtype, stream, _ in PRECISIONS
        if dtype != torch.float16
    ),
    Case(kernel=(5, 3, 3), **HEAVIEST),  # fp32 spills 48 bytes on sm_100 with Triton 3.6
)
FAST = (Case(), Case(dynamic=True))


def compile_cases(cases: tuple[Case, ...], targets: tuple[str, ...]) -> Iterator[Report]:
    """A report for every launch of every case on every target; of equal signatures, for the first case only."""
    return itertools.starmap(compile_call, distinct(cases, (), targets))


def compile_all(targets: tuple[str, ...], jobs: int) -> Iterator[Report]:
    """A report for every launch that there is, in ``jobs`` processes."""
    _calls[:] = [*distinct(CASES, TABLE, targets), *(call for target in targets for call in _step_calls(target))]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:  # kernels cannot be pickled, their places can
        yield from pool.imap(_compile, range(len(_calls)), chunksize=4)


Call = tuple[Any, tuple, dict, str, str, str]  # the arguments of `compile_call`
_calls: list[Call] = []


def _compile(i: int) -> Report:
    return compile_call(*_calls[i])


def distinct(cases: tuple[Case, ...], table: tuple[Case, ...], targets: tuple[str, ...]) -> Iterator[Call]:
    """What to compile: all designs of ``cases``, the chosen design of ``table``; of equal signatures the first."""
    for target in targets:
        done = set()
        for case in (*cases, *table):
            for design, (kernel, arguments, options) in launches(case, target, chosen_only=case not in cases):
                kind = signature(kernel, arguments, options)
                if kind not in done:
                    done.add(kind)
                    yield kernel, arguments, options, target, design, str(case)


def signature(kernel: Any, arguments: tuple, options: dict) -> tuple:
    """What tells one compiled kernel from another."""
    return kernel.__name__, tuple(map(type_of, arguments)), tuple(options.items())


def _step_calls(target: str) -> Iterator[Call]:
    """The launches of `fe_adapter.kernels.gelu2bit`, which have no plan."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, codes = torch.empty(4096, dtype=dtype), torch.empty(1024, dtype=torch.uint8)
        with recorded_calls(gelu2bit) as calls:
            gelu2bit.pack(x, (-1.0, 0.0, 1.0), codes)
            gelu2bit.multiply(x, codes, (0.0, 0.1, 0.9, 1.0), torch.empty_like(x))
        for call in calls:
            yield *call, target, "", f"{_short(dtype)} gelu2bit"


@contextlib.contextmanager
def plans_for(target: str) -> Iterator[None]:
    """Within the block the plans are those of a card that is not here."""
    arch = ARCHS[target]
    capability = divmod(arch.code, 10) if isinstance(arch.code, int) else (0, 0)
    with (
        mock.patch.object(plans, "platform", return_value=arch.backend),
        mock.patch.object(plans, "capability", return_value=capability),
        mock.patch.object(plans, "multiprocessors", return_value=1),  # which any grid fills
        mock.patch.object(plans, "precision", return_value="tf32"),  # without it fp32 is for gemm
        mock.patch.object(fused, "precision", return_value="tf32"),
    ):
        yield


def launches(case: Case, target: str, chosen_only: bool = False) -> list[tuple[str, tuple[Any, tuple, dict]]]:
    """What the launchers of every design that serves ``case``, or of the chosen one, would launch, each way."""
    if target == "sm_75" and torch.bfloat16 in (case.dtype, case.stream_dtype):
        return []  # `support` refuses it
    B, T, N, P, D, R = 1, 2, 6, 1, case.width, case.bottleneck  # small, and no multiple of 16, as 8 × 197 are none
    parameters = case.stream_dtype or case.dtype  # under autocast x and the parameters are both wider
    spec = AdapterSpec((2, 1, 1), case.max_dilation, case.activation, P, (2, 3), case.dtype, parameters, case.causal)
    x = torch.empty(B, T, P + N, D, dtype=case.stream_dtype or case.dtype)
    shapes = ((R, D), (R,), (R, 1, *case.kernel), (R,), (D, R), (D,), (3, R), (1,))
    weights = Weights(*(torch.empty(shape, dtype=parameters) for shape in shapes))
    if not case.dynamic:
        weights = weights._replace(dilation=None, dilation_bias=None)
    with plans_for(target):
        chosen = plans.choose_design(x, case.dtype, R, weights.conv)
        found = [(_of_design("gemm", call), call) for call in _recorded("gemm", x, weights, spec, case.needs_dx)]
        for design in DESIGNS:
            if chosen_only and design != chosen:
                continue
            if design == "gemm" or D % 16 or R % 16 or plans.refusals(design, x, case.dtype, R, weights.conv):
                continue
            calls = _recorded(design, x, weights, spec, case.needs_dx)
            found += [(_of_design(design, call), call) for call in calls]
    return found


def _recorded(
    design: str, x: torch.Tensor, weights: Weights, spec: AdapterSpec, needs_dx: bool
) -> list[tuple[Any, tuple, dict]]:
    with recorded_calls(cast, conv, fused, sums) as calls:
        adapter = (
            Products(x.shape, weights, spec, conv.KernelConvolution)
            if design == "gemm"
            else Fused(x, weights, spec, design)
        )
        _, h, rounded, copies = adapter.forward(x, weights, spec.compute_dtype != x.dtype)
        adapter.backward(torch.zeros_like(x), x if rounded is None else rounded, None, h, copies, weights, needs_dx)
    return calls


def _of_design(design: str, call: tuple[Any, tuple, dict]) -> str:
    """The design that a launch is particular to; none, if all designs have the like."""
    return design if call[0].__name__.startswith(("_fused", "_conv")) else ""


def problems(report: Report) -> list[str]:
    """What keeps a report from being clean."""
    found, arch = [], ARCHS[report.target]
    if report.spilled:
        found.append(f"spills {report.spilled} B a thread")
    if report.smem > arch.smem_block:
        found.append(f"shared memory {report.smem} B is over {arch.smem_block} B")
    if report.tensor_memory > arch.tensor_memory:
        found.append(f"tensor memory of {report.tensor_memory} columns is over {arch.tensor_memory}")
    no_dx = "fused_bwd" in report.kernel and report.case.endswith(NO_DX)
    if not (report.tensor_core or report.design in ("gemm", "") or (report.design == "tail" and no_dx)):
        found.append("no tensor-core instruction")
    phases = {"": 0, "gemm": 0, "tail": 1}.get(report.design, 2) + ("fused_bwd" in report.kernel) - no_dx
    if "static" not in report.case or "identity" not in report.case:
        phases += "fused_bwd" in report.kernel or "bwd_activation" in report.kernel  # between two readings of the taps
    if report.barriers < phases:
        found.append(f"{report.barriers} block barriers between the phases")
    if report.is_serialized:
        found.append("the tensor-core products are serialised (C7515)")
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
