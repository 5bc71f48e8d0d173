"""What the kernels must move and compute, and the least time that takes on cards that are not here.

    time ≥ max(DRAM bytes / rate, bytes through L2 / rate, FLOPs / peak) + 3 µs a launch

A prediction to compare designs with, never a result. Peaks are the vendors' dense 16-bit figures with fp32 accumulation
and L2 rates round figures of published micro-benchmarks; `REACH` is the share of each that a good kernel is assumed to
get.
"""

from __future__ import annotations

import dataclasses
import math

from fe_adapter.kernels.plans import HALF

REACH = {"DRAM": 0.85, "L2": 0.8, "math": 0.65}
LAUNCH = 3e-6  # seconds, without CUDA graphs
GEMM_TILE = (128, 256)  # of a library product


@dataclasses.dataclass(frozen=True)
class Card:
    """Peak rates: DRAM and L2 in bytes/s, 16-bit products in FLOP/s."""

    dram: float
    l2: float
    peak: float


CARDS = {
    "A100": Card(2.0e12, 4.5e12, 312e12),
    "H100": Card(3.35e12, 5.5e12, 989e12),
    "RTX 4090": Card(1.008e12, 5.0e12, 165e12),
    "L4": Card(0.3e12, 1.5e12, 121e12),
}


BOTTLENECKS = (32, 64, 96, 128, 192, 384)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A static adapter on B clips of T frames of N patches, 2 bytes an element."""

    B: int = 8
    T: int = 8
    N: int = 196
    D: int = 768
    R: int = 384

    @property
    def rows(self) -> int:
        return self.B * self.T * self.N

    @property
    def x(self) -> int:
        """Bytes of x, y, dy or dx."""
        return 2 * self.rows * self.D

    @property
    def h(self) -> int:
        """Bytes of h, c, dc or dh."""
        return 2 * self.rows * self.R


@dataclasses.dataclass(frozen=True)
class Launch:
    """Bytes from and to DRAM, further bytes that only pass L2, and FLOPs."""

    name: str
    dram: int
    l2: int
    flops: int

    def seconds(self, card: Card) -> float:
        return max(self._bounds(card).values()) + LAUNCH

    def bound(self, card: Card) -> str:
        """What the time is spent on: "DRAM", "L2" or "math"."""
        bounds = self._bounds(card)
        return max(bounds, key=lambda name: bounds[name])

    def _bounds(self, card: Card) -> dict[str, float]:
        return {
            "DRAM": self.dram / (card.dram * REACH["DRAM"]),
            "L2": (self.dram + self.l2) / (card.l2 * REACH["L2"]),
            "math": self.flops / (card.peak * REACH["math"]),
        }


def gemm_design(s: Shape) -> tuple[list[Launch], list[Launch]]:
    """The launches of design ``gemm``, forward and backward."""
    product = 2 * s.rows * s.D * s.R
    wide = _product_l2(s.rows, s.D, s.R)  # to or from the width D
    narrow = _product_l2(s.rows, s.R, s.D)
    weights = _product_l2(s.D, s.R, s.rows)
    forward = [
        Launch("down", s.x + s.h, narrow, product),
        Launch("convolution", 2 * s.h, 2 * s.h, 0),
        Launch("up", 2 * s.x + s.h, wide, product),
    ]
    backward = [
        Launch("dφ", s.x + s.h, narrow, product),
        Launch("convolution, dc", 4 * s.h, 4 * s.h, 0),
        Launch("dWu", s.x + s.h, weights, product),
        Launch("convolution, dh", 2 * s.h, 2 * s.h, 0),
        Launch("dx", 2 * s.x + s.h, wide, product),
        Launch("dWd", s.x + s.h, weights, product),
    ]
    return forward, backward


def fused_design(s: Shape) -> tuple[list[Launch], list[Launch]]:
    """The launches of design ``fused``, forward and backward, with the plan for 16-bit streams."""
    product = 2 * s.rows * s.D * s.R
    programs = s.B * math.ceil(s.N / (HALF.BLOCK_M // s.T))
    matrices = programs * 2 * 2 * s.D * s.R  # each program reads both
    x_again = (math.ceil(s.R / HALF.BLOCK_R) - 1) * s.x + s.x  # by every block of channels, and as the residual
    c_again = math.ceil(s.D / HALF.BLOCK_N) * s.h
    weights = _product_l2(s.D, s.R, s.rows)
    forward = [Launch("fused", 2 * s.x + s.h, matrices + x_again + c_again + 4 * s.h, 2 * product)]
    backward = [
        Launch("fused", 2 * s.x + 3 * s.h, matrices + x_again + c_again + 8 * s.h, 2 * product),
        Launch("dWu", s.x + s.h, weights, product),
        Launch("dWd", s.x + s.h, weights, product),
    ]
    return forward, backward


DESIGNS = {"gemm": gemm_design, "fused": fused_design}


def predicted(design: str, shape: Shape, card: Card) -> tuple[float, float]:
    """Predicted seconds, forward and backward."""
    forward, backward = DESIGNS[design](shape)
    return sum(launch.seconds(card) for launch in forward), sum(launch.seconds(card) for launch in backward)


def faster(shape: Shape, card: Card) -> str:
    """The design predicted to be faster, forward and backward together."""
    return min(DESIGNS, key=lambda design: sum(predicted(design, shape, card)))


def roofline_share(design: str, shape: Shape, card: Card) -> float:
    """Share of the predicted forward time that x, y and h once, and both products, would take at full rate."""
    least = max((2 * shape.x + shape.h) / card.dram, 4 * shape.rows * shape.D * shape.R / card.peak)
    return least / predicted(design, shape, card)[0]


def _product_l2(m: int, n: int, k: int) -> int:
    """Bytes a tiled product reads through L2: each operand once for every tile across the other."""
    return 2 * k * (m * math.ceil(n / GEMM_TILE[1]) + n * math.ceil(m / GEMM_TILE[0]))
