"""Which tiles a kernel runs with, by architecture: one table."""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ConvPlan:
    """Tiles of the convolution kernels: rows, channels, warps."""

    BLOCK_M: int
    BLOCK_R: int
    num_warps: int

    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return dataclasses.asdict(self)


CONV = {
    "interpreter": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=1),
    "cuda": ConvPlan(BLOCK_M=32, BLOCK_R=64, num_warps=4),
    "hip": ConvPlan(BLOCK_M=32, BLOCK_R=64, num_warps=4),
}
CONV_SPATIAL = {
    "interpreter": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=1),
    "cuda": ConvPlan(BLOCK_M=16, BLOCK_R=64, num_warps=4),
    "hip": ConvPlan(BLOCK_M=16, BLOCK_R=64, num_warps=4),
}


@functools.cache
def platform() -> str:
    """The row of the tables that serves this machine."""
    if triton.knobs.runtime.interpret:
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


def conv_plan(h: Tensor, conv: Tensor) -> ConvPlan:
    """For a hidden ``h`` (B, T, N, R) and a convolution's weight."""
    is_spatial = conv.shape[-2] * conv.shape[-1] > 1
    return (CONV_SPATIAL if is_spatial else CONV)[platform()]
