"""Which design and which tiles serve a call: one table per kernel family, by architecture. Never tuned at run time.

What is here fits each architecture's shared memory and spills no registers (`python -m bench compile`). Of what does,
an H100 was asked what is fast (`python -m bench tiles`); for other cards a model was (`python -m bench cost`).
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
from torch import Tensor

from fe_adapter.kernels.spec import CONV_ROWS, ceil_div

ALL_REGISTERS = 255  # of a thread: left to itself, ptxas may spill a few bytes to stay below a threshold of its own


@dataclasses.dataclass(frozen=True)
class ConvPlan:
    """Tiles of the convolution kernels: rows and channels."""

    BLOCK_M: int
    BLOCK_R: int
    num_warps: int = 4
    maxnreg: int | None = None

    @functools.cache  # noqa: B019  # of the few plans in the tables
    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class LaunchPlan:
    """Tiles of the kernels that hold a whole adapter, or its tail.

    Rows; D and R of the down-product; D and R of the up-product; channels of the convolution, forward and backward;
    tiles of ``h`` that the down-product keeps at a time; tiles of ``c`` that the up-product keeps in shared memory, 0
    where ``c`` passes by.
    """

    BLOCK_M: int
    BLOCK_D: int
    BLOCK_R: int
    BLOCK_N: int
    BLOCK_K: int
    BLOCK_S: int = 64
    BLOCK_S_BACKWARD: int = 32
    ACCUMULATORS: int = 1
    PARTS: int = 0
    UP_STAGES: int = 3
    num_warps: int = 8
    num_stages: int = 3
    maxnreg: int | None = None

    @functools.cache  # noqa: B019  # of few plans and widths, all in the tables
    def options(self, D: int, R: int, taps: int, backward: bool) -> dict[str, int | bool]:
        """Keyword arguments of a launch; EVEN drops the masks of the products."""
        even = D % self.BLOCK_D == R % (self.ACCUMULATORS * self.BLOCK_R) == D % self.BLOCK_N == R % self.BLOCK_K == 0
        options = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        backward_channels = options.pop("BLOCK_S_BACKWARD")
        if backward:
            options["BLOCK_S"] = backward_channels
        if not even:  # with masks and a fourth stage, some spill
            options["num_stages"] = min(3, options["num_stages"])
        if taps > 3:  # each has its values in registers
            options["BLOCK_S"] = 8 if taps > 5 else max(16, options["BLOCK_S"] // 2)
        return options | {"EVEN": even}


SMALL = LaunchPlan(
    BLOCK_M=16, BLOCK_D=16, BLOCK_R=16, BLOCK_N=16, BLOCK_K=16, BLOCK_S=16, BLOCK_S_BACKWARD=16, num_warps=1,
    num_stages=1, UP_STAGES=1,
)  # fmt: skip
HALF = LaunchPlan(BLOCK_M=128, BLOCK_D=64, BLOCK_R=64, BLOCK_N=64, BLOCK_K=64, maxnreg=ALL_REGISTERS)
WIDE_STREAM = dataclasses.replace(HALF, BLOCK_M=64)
SINGLE = LaunchPlan(
    BLOCK_M=64, BLOCK_D=32, BLOCK_R=32, BLOCK_N=32, BLOCK_K=32, num_stages=2, UP_STAGES=2,
    maxnreg=ALL_REGISTERS,
)  # fmt: skip


def _amd(plan: LaunchPlan) -> LaunchPlan:
    return dataclasses.replace(plan, num_stages=2, UP_STAGES=2, maxnreg=None)


@functools.cache
def _narrow(plan: LaunchPlan) -> LaunchPlan:
    """For compute capability 10.0 and 12.0, where the backward of a dynamic dilation spills with 32 channels."""
    return dataclasses.replace(plan, BLOCK_S_BACKWARD=16)


# by the sizes of an element of x and of the weights, in bytes
FUSED = {
    "interpreter": {(2, 2): SMALL, (4, 2): SMALL, (4, 4): SMALL},
    "cuda": {(2, 2): HALF, (4, 2): WIDE_STREAM, (4, 4): SINGLE},
    "hip": {(2, 2): _amd(HALF), (4, 2): _amd(WIDE_STREAM), (4, 4): _amd(SINGLE)},
}


def _resident(BLOCK_R: int, ACCUMULATORS: int, BLOCK_K: int, BLOCK_N: int = 64, **others: int) -> LaunchPlan:
    plan = dataclasses.replace(HALF, BLOCK_R=BLOCK_R, ACCUMULATORS=ACCUMULATORS, BLOCK_K=BLOCK_K, BLOCK_N=BLOCK_N)
    return dataclasses.replace(plan, **{"UP_STAGES": 2, **others})


# by the largest R, and by the size of an element of x in bytes: tiles of h, how many at a time, tiles of c and of D
RESIDENT = {
    64: {2: _resident(64, 1, 64, UP_STAGES=3, BLOCK_M=64, num_warps=4), 4: _resident(64, 1, 64, 32)},
    128: {2: _resident(64, 2, 64, 128), 4: _resident(128, 1, 64, 32)},
    192: {2: _resident(64, 3, 64, UP_STAGES=3), 4: _resident(64, 3, 64, 32, BLOCK_D=32)},
    256: {2: _resident(64, 4, 64, BLOCK_D=32, num_stages=4), 4: _resident(64, 2, 64, 32, BLOCK_D=32)},
    384: {2: _resident(64, 3, 128, num_stages=4), 4: _resident(64, 3, 64, 32, BLOCK_D=32)},
    512: {
        2: _resident(128, 4, 64, BLOCK_M=64, BLOCK_D=32, num_stages=4, BLOCK_S_BACKWARD=64),
        4: _resident(128, 2, 64, 32, BLOCK_M=64),
    },
}
# where accumulators are in a memory of their own, all of R is one pass over a 16-bit x
RESIDENT_TENSOR_MEMORY = RESIDENT | {
    64: {2: _resident(64, 1, 64, 128, UP_STAGES=3), 4: _resident(64, 1, 64, 32)},
    256: {2: _resident(128, 2, 128), 4: _resident(64, 4, 64, 32, BLOCK_D=32)},
    384: {2: _resident(128, 3, 128), 4: _resident(64, 3, 64, 32, BLOCK_D=32)},  # 128 spill with what backward keeps
}
RESIDENT_TENSOR_MEMORY = {
    R: {size: _narrow(plan) for size, plan in by_size.items()} for R, by_size in RESIDENT_TENSOR_MEMORY.items()
}
TAIL_128_ROWS = _resident(32, 1, 32, 32, BLOCK_D=32, num_stages=2)
TAIL_64_ROWS = _resident(64, 1, 64, 32, BLOCK_D=32, BLOCK_M=64, num_stages=2)
TAIL_163_KIB = {384: dict.fromkeys((2, 4), TAIL_128_ROWS), 512: dict.fromkeys((2, 4), TAIL_64_ROWS)}
TAIL_99_KIB = {384: dict.fromkeys((2, 4), TAIL_64_ROWS)}  # of shared memory a block

# the plans with c in shared memory, by compute capability
IN_SHARED_MEMORY = {
    "resident": {(9, 0): RESIDENT, (10, 0): RESIDENT_TENSOR_MEMORY},
    "tail": {
        (8, 0): TAIL_163_KIB,
        (8, 6): TAIL_99_KIB,
        (8, 9): TAIL_99_KIB,
        (9, 0): RESIDENT,
        (10, 0): RESIDENT_TENSOR_MEMORY,
        (12, 0): TAIL_99_KIB,
    },
}
# what is the fastest, by compute capability: up to which R, which design, the next where one refuses (``resident`` does
# fp32); beyond, gemm. On 9.0 measured: at 384 gemm's kernels take 8 % less than resident's, but its launches take the
# host longer. Else predicted (`python -m bench cost`): every program of ``fused`` reads both matrices through L2, for
# which cards with fast DRAM wait from 128 on, while those for gaming and inference still wait for DRAM; of designs that
# are predicted within 1 % of each other, the simpler
CHOICE = {
    (8, 0): {96: "fused", 512: "tail"},
    (8, 6): {640: "fused"},
    (8, 9): {640: "fused"},
    (9, 0): {384: "resident", 128: "fused"},
    (10, 0): {512: "resident", 128: "fused"},
    (12, 0): {640: "fused"},
}
OTHERS = {128: "fused"}
MOST_TAPS = 7  # in time; with more, others spill sooner than gemm
FEW = 4, 128  # with less than a program to so many multiprocessors, and with more than so many columns, gemm is faster
CONV = {
    "interpreter": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=1),
    "cuda": ConvPlan(BLOCK_M=CONV_ROWS, BLOCK_R=32, num_warps=2, maxnreg=ALL_REGISTERS),
    "hip": ConvPlan(BLOCK_M=32, BLOCK_R=32),
}
CONV_NARROW = CONV | {  # an element a thread, for rows that are not aligned and many taps: with two, some spill
    "cuda": ConvPlan(BLOCK_M=CONV_ROWS, BLOCK_R=16, num_warps=8, maxnreg=ALL_REGISTERS),
    "hip": ConvPlan(BLOCK_M=16, BLOCK_R=16),
}
SUMS = {
    "interpreter": ConvPlan(BLOCK_M=16, BLOCK_R=16, num_warps=1),
    "cuda": ConvPlan(BLOCK_M=256, BLOCK_R=16),
    "hip": ConvPlan(BLOCK_M=256, BLOCK_R=16),
}


@functools.cache
def platform() -> str:
    """The row of the tables that serves this machine."""
    if triton.knobs.runtime.interpret:
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of an NVIDIA card; of all else, (0, 0)."""
    return torch.cuda.get_device_capability(device) if platform() == "cuda" else (0, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many an NVIDIA card has; of all else, 0."""
    return torch.cuda.get_device_properties(device).multi_processor_count if platform() == "cuda" else 0


def conv_plan(bottleneck: int, kernel_size: torch.Size) -> ConvPlan:
    """For a hidden (B, T, N, R) and a kernel (K, kh, kw), whose kh rows, if several, follow each other in a loop."""
    K, KH, KW = kernel_size
    is_one_row = KH == 1  # without the loop, which keeps the compiler from loading all taps at once
    is_narrow = bottleneck % 16 or max(K, KW) > 3 or (is_one_row and K * KW > 3)
    return (CONV_NARROW if is_narrow else CONV)[platform()]


def sums_plan() -> ConvPlan:
    """The plan of the reductions' second stage."""
    return SUMS[platform()]


def launch_plan(design: str, x: Tensor, compute_dtype: torch.dtype, bottleneck: int) -> LaunchPlan:
    """The plan of a design that `refusals` does not refuse, for an input ``x`` (B, T, L, D)."""
    sizes = max(x.element_size(), compute_dtype.itemsize), compute_dtype.itemsize
    if design == "fused":
        plan = FUSED[platform()][sizes]
        return _narrow(plan) if capability(x.device) >= (10, 0) else plan
    if platform() == "interpreter":
        return _with_parts(dataclasses.replace(SMALL, ACCUMULATORS=2), bottleneck)
    return _with_parts(plan_in_shared_memory(design, capability(x.device), sizes[0], bottleneck), bottleneck)


@functools.cache
def _with_parts(plan: LaunchPlan, bottleneck: int) -> LaunchPlan:
    return dataclasses.replace(plan, PARTS=ceil_div(bottleneck, plan.BLOCK_K))


def plan_in_shared_memory(design: str, arch: tuple[int, int], stream_size: int, bottleneck: int) -> LaunchPlan:
    """By compute capability and the size of an element of x; PARTS is still 0."""
    plans = IN_SHARED_MEMORY[design][arch]
    return plans[min(R for R in plans if bottleneck <= R)][stream_size]


def choose_design(x: Tensor, compute_dtype: torch.dtype, bottleneck: int, conv: Tensor) -> str:
    """The design for an input (B, T, L, D): what is measured or predicted as the fastest that can serve it."""
    if platform() == "hip" or (compute_dtype == torch.float32 and precision() == "ieee"):
        return "gemm"  # no AMD card has run a barrier between phases yet
    if x.shape[-1] % 16 or bottleneck % 16:
        return "gemm"  # rows that are not aligned: the other kernels would spill their addresses
    if conv.shape[2] > MOST_TAPS:
        return "gemm"
    for widest, design in CHOICE.get(capability(x.device), OTHERS).items():
        if bottleneck <= widest and not refusals(design, x, compute_dtype, bottleneck, conv):
            return "gemm" if _has_few_programs(design, x, compute_dtype, bottleneck) else design
    return "gemm"


def _has_few_programs(design: str, x: Tensor, compute_dtype: torch.dtype, bottleneck: int) -> bool:
    """Whether a grid leaves most of the card idle, and long, as each program goes through all of both matrices."""
    share, widest = FEW
    if bottleneck <= widest:
        return False
    B, T, L, _ = x.shape
    programs = B * ceil_div(L, launch_plan(design, x, compute_dtype, bottleneck).BLOCK_M // T)
    return programs * share < multiprocessors(x.device)


def refusals(design: str, x: Tensor, compute_dtype: torch.dtype, bottleneck: int, conv: Tensor) -> list[str]:
    """Why a design cannot serve a call; empty if it can."""
    if design == "gemm":
        return []
    T, arch, reasons = x.shape[1], capability(x.device), []
    if x.shape[1:].numel() >= 2**31:
        reasons.append("offsets within a clip have 32 bits")
    if conv.shape[-2] * conv.shape[-1] > 1:
        reasons.append("a spatial kernel needs patches of other programs")
    if platform() == "cuda" and arch < (8, 0):
        reasons.append("Triton has no tensor cores below compute capability 8.0")
    if design != "fused" and platform() != "interpreter":
        served = IN_SHARED_MEMORY[design]
        if arch not in served:
            names = ", ".join(f"{major}.{minor}" for major, minor in served)
            reasons.append(f"its tiles are laid out for the shared memory of compute capability {names}")
        elif bottleneck > (widest := max(served[arch])):
            reasons.append(f"R={bottleneck} is more than the {widest} columns that shared memory holds")
        if compute_dtype.itemsize > 2:
            reasons.append(f"it computes in bfloat16 and float16, not in {compute_dtype}")
    if not reasons and (rows := launch_plan(design, x, compute_dtype, bottleneck).BLOCK_M) < T:
        reasons.append(f"{T} frames are more than the {rows} rows of a program")
    return reasons


def precision() -> str:
    """How fp32 products are computed: as PyTorch's own setting says."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
