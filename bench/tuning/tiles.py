"""What other tiles than those of the launch plans would take on a GPU: kernels of a layer, one change at a time.

A faster row is no plan yet: `python -m bench compile` has to find that it spills no registers on any Triton.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from bench.proof.checks import chosen
from bench.tuning.profile import kernel_times, layer_step
from fe_adapter.kernels import fused, plans

CHANGES: tuple[dict[str, int], ...] = (
    {},
    {"BLOCK_S": 16, "BLOCK_S_BACKWARD": 16},
    {"BLOCK_S": 32},
    {"BLOCK_S_BACKWARD": 64},
    {"BLOCK_M": 64, "num_warps": 4},
    {"BLOCK_M": 64, "num_warps": 4, "BLOCK_N": 32},
    {"BLOCK_M": 64, "num_warps": 4, "BLOCK_N": 64, "UP_STAGES": 1, "num_stages": 3},
    {"BLOCK_M": 64, "num_warps": 4, "BLOCK_N": 64, "BLOCK_D": 128, "num_stages": 2},
    {"BLOCK_M": 64},
    {"BLOCK_D": 32},
    {"num_stages": 2},
    {"BLOCK_N": 128, "UP_STAGES": 2},
)
CONVOLUTIONS = ((16, 32, 2), (16, 64, 4), (32, 32, 4), (32, 64, 4), (64, 32, 4), (64, 64, 4))  # rows, channels, warps
OURS = ("_fused", "_conv", "_add_sums")  # what the names of our kernels begin with
Row = tuple[str, str, str]  # what was changed; µs of each kernel; µs of all


def sweep(R: int, dilation: int | str) -> Iterator[Row]:
    """Times of every design but ``tail``, whose plans are those of ``resident``."""
    step = layer_step(R, dilation)
    for design, change in itertools.product(("resident", "fused"), CHANGES):
        with chosen(design), mock.patch.object(fused, "launch_plan", _changed(change)):
            yield _row(design, change, step)
    for rows, channels, warps in CONVOLUTIONS:
        plan = plans.ConvPlan(rows, channels, warps, plans.ALL_REGISTERS)
        with chosen("gemm"), mock.patch.dict(plans.CONV, {"cuda": plan}):
            yield _row("gemm", plan.options(), step)


def _changed(change: dict[str, int]) -> Any:
    def launch_plan(design: str, x: torch.Tensor, compute_dtype: torch.dtype, bottleneck: int) -> plans.LaunchPlan:
        return dataclasses.replace(plans.launch_plan(design, x, compute_dtype, bottleneck), **change)

    return launch_plan


def _row(design: str, change: dict[str, int], step: Any) -> Row:
    name = f"{design} {' '.join(f'{key}={value}' for key, value in change.items())}"
    try:
        kernels = {row["name"]: row["us"] for row in kernel_times(step) if row["name"].startswith(OURS)}
    except Exception as reason:  # too much shared memory, or what else Triton says of a plan
        return name, f"{type(reason).__name__}: {reason}".splitlines()[0][:100], ""
    return name, ", ".join(f"{kernel} {us}" for kernel, us in kernels.items()), f"{sum(kernels.values()):.1f}"
