"""Which design and which tiles serve a call: one table per kernel family, by architecture. Never tuned at run time.

The figures come from compiling ahead of time (`python -m bench compile`): no plan here spills registers, and each fits
its architecture's shared memory. No GPU has timed them yet.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
from torch import Tensor

DESIGNS = ("fused", "gemm")


ALL_REGISTERS = 255  # of a thread: left to itself, ptxas may spill a few bytes to stay below a threshold of its own


@dataclasses.dataclass(frozen=True)
class ConvPlan:
    """Tiles of the convolution kernels: rows and channels."""

    BLOCK_M: int
    BLOCK_R: int
    num_warps: int = 4
    maxnreg: int | None = None

    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class FusedPlan:
    """Tiles of the fused kernels: rows; D and R of the down-product; channels of the convolution; D and R of the up."""

    BLOCK_M: int
    BLOCK_D: int
    BLOCK_R: int
    BLOCK_S: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int = 8
    num_stages: int = 3
    maxnreg: int | None = None

    def options(self, D: int, R: int) -> dict[str, int | bool]:
        """Keyword arguments of a launch; EVEN drops the masks of the products."""
        even = D % self.BLOCK_D == R % self.BLOCK_R == D % self.BLOCK_N == R % self.BLOCK_K == 0
        return {**{name: value for name, value in dataclasses.asdict(self).items() if value is not None}, "EVEN": even}


# 16 channels at a time in the convolution: with 32, the backward of a dynamic dilation spills on several targets
SMALL = FusedPlan(BLOCK_M=16, BLOCK_D=16, BLOCK_R=16, BLOCK_S=16, BLOCK_N=16, BLOCK_K=16, num_warps=1, num_stages=1)
HALF = FusedPlan(BLOCK_M=128, BLOCK_D=64, BLOCK_R=64, BLOCK_S=16, BLOCK_N=64, BLOCK_K=64)
WIDE_STREAM = dataclasses.replace(HALF, BLOCK_M=64, maxnreg=ALL_REGISTERS)
SINGLE = FusedPlan(
    BLOCK_M=64, BLOCK_D=32, BLOCK_R=32, BLOCK_S=16, BLOCK_N=32, BLOCK_K=32, num_stages=2, maxnreg=ALL_REGISTERS
)


def _amd(plan: FusedPlan) -> FusedPlan:
    return dataclasses.replace(plan, num_stages=2, maxnreg=None)


# by the sizes of an element of x and of the weights, in bytes
FUSED = {
    "interpreter": {(2, 2): SMALL, (4, 2): SMALL, (4, 4): SMALL},
    "cuda": {(2, 2): HALF, (4, 2): WIDE_STREAM, (4, 4): SINGLE},
    "hip": {(2, 2): _amd(HALF), (4, 2): _amd(WIDE_STREAM), (4, 4): _amd(SINGLE)},
}
CONV = {
    "interpreter": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=1),
    "cuda": ConvPlan(BLOCK_M=32, BLOCK_R=32, maxnreg=ALL_REGISTERS),
    "hip": ConvPlan(BLOCK_M=32, BLOCK_R=32),
}
CONV_SPATIAL = CONV | {
    "cuda": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=2, maxnreg=ALL_REGISTERS),
    "hip": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=2),
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


def fused_plan(x: Tensor, down: Tensor) -> FusedPlan:
    """For an input ``x`` (B, T, L, D) and the down-projection's weight."""
    return FUSED[platform()][_sizes(x, down.dtype)]


def choose_design(x: Tensor, compute_dtype: torch.dtype, bottleneck: int, conv: Tensor) -> str:
    """The design for an input (B, T, L, D): ``fused`` where its one launch is predicted to win, else ``gemm``."""
    if fused_refusals(x, compute_dtype, conv):
        return "gemm"
    if platform() == "hip" or (compute_dtype == torch.float32 and precision() == "ieee"):
        return "gemm"
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (8, 0)
    return "fused" if bottleneck <= fused_up_to(capability) else "gemm"


def fused_up_to(capability: tuple[int, int]) -> int:
    """The widest bottleneck for which ``fused`` is predicted to win (`python -m bench cost`) on a compute capability.

    Every program reads both matrices, through L2. Cards with fast DRAM wait for that from 128 on; on the others, of the
    same generations but for gaming and inference, DRAM stays the bound for longer.
    """
    return 384 if capability in ((8, 6), (8, 9), (12, 0)) else 128


def fused_refusals(x: Tensor, compute_dtype: torch.dtype, conv: Tensor) -> list[str]:
    """Why the fused kernels cannot serve a call; empty if they can."""
    T, reasons = x.shape[1], []
    if conv.shape[-2] * conv.shape[-1] > 1:
        reasons.append("a spatial kernel needs patches of other programs")
    rows = FUSED[platform()][_sizes(x, compute_dtype)].BLOCK_M
    if rows < T:
        reasons.append(f"{T} frames are more than the {rows} rows of a program")
    if x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("Triton has no tensor cores below compute capability 8.0")
    return reasons


def _sizes(x: Tensor, compute_dtype: torch.dtype) -> tuple[int, int]:
    return max(x.element_size(), compute_dtype.itemsize), compute_dtype.itemsize


def precision() -> str:
    """How fp32 products are computed: as PyTorch's own setting says."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
