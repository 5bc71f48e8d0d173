"""What the kernels must move and compute, and the least time that takes on cards that are not here.

    time ≥ max(DRAM bytes / rate, bytes through L2 / rate, FLOPs / peak) + 3 µs a launch

FLOPs and L2 bytes of our launches at the rate of the multiprocessors that their programs keep busy: each has one to
itself, so 13 programs take as long as 132. A prediction to compare designs with, never a result. Peaks are the vendors'
dense 16-bit figures with fp32 accumulation and fp32 vector figures; L2 rates are round figures of published
micro-benchmarks, B200's a guess; `REACH` is the share of each that a good kernel is assumed to get: of the vector units
little, as addresses and masks are not counted. That `addmm` and `baddbmm` copy what they add to is read in PyTorch's
sources (aten/src/ATen/native/cuda/Blas.cpp), not measured.
"""

from __future__ import annotations

import dataclasses
import math

from fe_adapter.kernels.plans import FUSED, IN_SHARED_MEMORY, LaunchPlan, plan_in_shared_memory

REACH = {"DRAM": 0.85, "L2": 0.8, "math": 0.65, "vector": 0.25}
LAUNCH = 3e-6  # seconds, without CUDA graphs
PORT = 64  # bytes a clock from L2 into one multiprocessor
GEMM_TILE = (128, 256)  # of a library product
BOTTLENECKS = (32, 64, 96, 128, 192, 256, 384, 512, 640)
BATCHES = (1, 2, 4, 8, 16)  # clips


@dataclasses.dataclass(frozen=True)
class Card:
    """Peak rates: DRAM and L2 in bytes/s, 16-bit products and fp32 vector arithmetic in FLOP/s; boost clock in Hz."""

    capability: tuple[int, int]
    dram: float
    l2: float
    peak: float
    vector: float
    multiprocessors: int
    clock: float


CARDS = {
    "A100": Card((8, 0), 2.0e12, 4.5e12, 312e12, 19.5e12, 108, 1.41e9),
    "H100": Card((9, 0), 3.35e12, 5.5e12, 989e12, 67e12, 132, 1.83e9),
    "B200": Card((10, 0), 8.0e12, 10e12, 2250e12, 80e12, 148, 1.85e9),
    "RTX 4090": Card((8, 9), 1.008e12, 5.0e12, 165e12, 82.6e12, 128, 2.52e9),
    "L4": Card((8, 9), 0.3e12, 1.5e12, 121e12, 30.3e12, 58, 2.04e9),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An adapter with three taps on B clips of T frames of N patches, weights of 2 bytes an element."""

    B: int = 8
    T: int = 8
    N: int = 196
    D: int = 768
    R: int = 384
    dynamic: bool = False
    stream: int = 2  # bytes of an element of x

    @property
    def rows(self) -> int:
        return self.B * self.T * self.N

    @property
    def x(self) -> int:
        """Bytes of x, y, dy or dx."""
        return self.stream * self.rows * self.D

    @property
    def h(self) -> int:
        """Bytes of h, c, dc or dh."""
        return 2 * self.rows * self.R

    @property
    def product(self) -> int:
        """FLOPs of a product with one of the matrices."""
        return 2 * self.rows * self.D * self.R

    def vector(self, backward: bool) -> int:
        """FLOPs of the convolution; of a dynamic one backward, a loop over all frames."""
        each = (40 + 6 * self.T if self.dynamic else 18) if backward else (20 if self.dynamic else 6)
        return self.rows * self.R * each

    @property
    def predictor(self) -> int:
        """Bytes that the dilation's predictor reads through L2, once more for each launch that needs it."""
        return self.h if self.dynamic else 0


@dataclasses.dataclass(frozen=True)
class Launch:
    """Bytes from and to DRAM, further bytes that only pass L2, and FLOPs of products and of vector arithmetic."""

    name: str
    dram: int
    l2: int
    flops: int
    vector: int = 0
    programs: int = 0  # of a library's launch, 0: as many as fill the card

    def seconds(self, card: Card) -> float:
        return max(self._bounds(card).values()) + LAUNCH

    def bound(self, card: Card) -> str:
        """What the time is spent on: "DRAM", "L2", "math" or "vector"."""
        bounds = self._bounds(card)
        return max(bounds, key=lambda name: bounds[name])

    def _bounds(self, card: Card) -> dict[str, float]:
        waves = math.ceil(self.programs / card.multiprocessors)
        busy = self.programs / (waves * card.multiprocessors) if waves else 1.0  # share of the card, on average
        port = busy * card.multiprocessors * PORT * card.clock
        return {
            "DRAM": self.dram / (card.dram * REACH["DRAM"]),
            "L2": (self.dram + self.l2) / (min(card.l2, port) * REACH["L2"]),
            "math": self.flops / (card.peak * busy * REACH["math"]),
            "vector": self.vector / (card.vector * busy * REACH["vector"]),
        }


def designs(shape: Shape, card: Card) -> list[str]:
    """The designs that have a plan for a shape on a card."""
    widest = {design: max(by_arch.get(card.capability, [0])) for design, by_arch in IN_SHARED_MEMORY.items()}
    return ["gemm", "fused", *(design for design in widest if widest[design] >= shape.R)]


def launches(design: str, shape: Shape, card: Card) -> tuple[list[Launch], list[Launch]]:
    """What a design launches, forward and backward."""
    if design == "gemm":
        return _gemm(shape)
    if design == "fused":
        return _whole(shape, FUSED["cuda"][shape.stream, 2], design)
    return _whole(shape, plan_in_shared_memory(design, card.capability, shape.stream, shape.R), design)


def _gemm(s: Shape) -> tuple[list[Launch], list[Launch]]:
    x = 2 * s.rows * s.D
    # where x has 16 bits, `addmm` copies it into the result first; else the product has 16 bits, the sum has not
    add = [Launch("add", s.x * 5 // 2, 0, 0)] if s.stream == 4 else [Launch("copy", 2 * x, 0, 0)]
    wide = _product_l2(s.rows, s.D, s.R)  # to or from the width D
    up = Launch("up", (2 if s.stream == 2 else 1) * x + s.h, wide, s.product)
    forward = [
        *_down(s),
        Launch("convolution", 2 * s.h, 2 * s.h + s.predictor, 0, s.vector(False)),
        up,
        *add,
    ]
    backward = [
        *_narrow("dφ", s),
        Launch("convolution, dc", 4 * s.h, 4 * s.h + s.predictor, 0, s.vector(True) // 2),
        Launch("convolution, dh", 2 * s.h, 2 * s.h + s.predictor, 0, s.vector(True) // 2),
        up,
        *add,
        *_weight_gradients(s),
    ]
    return forward, backward


def _whole(s: Shape, plan: LaunchPlan, design: str) -> tuple[list[Launch], list[Launch]]:
    programs = s.B * math.ceil(s.N / (plan.BLOCK_M // s.T))
    matrix = programs * 2 * s.D * s.R  # each program reads it
    passes = math.ceil(s.R / (plan.ACCUMULATORS * plan.BLOCK_R))
    c = s.h if design != "fused" else math.ceil(s.D / plan.BLOCK_N) * s.h
    up = matrix + s.x + c  # x as the residual
    if design == "tail":
        l2, flops = matrix + c, s.product
        forward = [*_down(s), Launch("tail", 2 * s.x + s.h, l2 + 4 * s.h, flops, s.vector(False), programs)]
        backward = [
            *_narrow("dφ", s),
            Launch("tail", 2 * s.x + 4 * s.h, l2 + 8 * s.h, flops, s.vector(True), programs),
        ]
    else:
        down = matrix + (passes - 1) * s.x
        l2, flops = down + up + s.predictor, 2 * s.product
        forward = [Launch(design, 2 * s.x + s.h, l2 + 4 * s.h, flops, s.vector(False), programs)]
        backward = [Launch(design, 2 * s.x + 3 * s.h, l2 + 8 * s.h, flops, s.vector(True), programs)]
    return forward, [*backward, *_weight_gradients(s)]


def _down(s: Shape) -> list[Launch]:
    """With the bias, which `baddbmm` writes into the result first."""
    *cast, product = _narrow("down", s)
    return [*cast, Launch("bias", s.h, 0, 0), dataclasses.replace(product, dram=product.dram + s.h)]


def _narrow(name: str, s: Shape) -> list[Launch]:
    """A library product from the width D to R, of 16-bit operands."""
    cast = [Launch("cast", s.x * 3 // 2, 0, 0)] if s.stream == 4 else []
    return [*cast, Launch(name, 2 * s.rows * s.D + s.h, _product_l2(s.rows, s.R, s.D), s.product)]


def _weight_gradients(s: Shape) -> list[Launch]:
    weights = _product_l2(s.D, s.R, s.rows)
    return [Launch(name, 2 * s.rows * s.D + s.h, weights, s.product) for name in ("dWu", "dWd")]


def predicted(design: str, shape: Shape, card: Card) -> tuple[float, float]:
    """Predicted seconds, forward and backward."""
    forward, backward = launches(design, shape, card)
    return sum(launch.seconds(card) for launch in forward), sum(launch.seconds(card) for launch in backward)


def faster(shape: Shape, card: Card) -> str:
    """The design predicted to be faster, forward and backward together."""
    return min(designs(shape, card), key=lambda design: sum(predicted(design, shape, card)))


def roofline_share(design: str, shape: Shape, card: Card) -> float:
    """Share of the predicted forward time that x, y and h once, and both products, would take at full rate."""
    least = max((2 * shape.x + shape.h) / card.dram, 2 * shape.product / card.peak)
    return least / predicted(design, shape, card)[0]


def _product_l2(m: int, n: int, k: int) -> int:
    """Bytes a tiled product reads through L2: each operand once for every tile across the other."""
    return 2 * k * (m * math.ceil(n / GEMM_TILE[1]) + n * math.ceil(m / GEMM_TILE[0]))
