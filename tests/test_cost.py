"""The cost model: bytes by hand, and the launch plans' choice that rests on it."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench.cost import BOTTLENECKS, CARDS, Shape, faster, fused_design, gemm_design, predicted, roofline_share
from fe_adapter.kernels.plans import fused_up_to

CAPABILITIES = {"A100": (8, 0), "H100": (9, 0), "RTX 4090": (8, 9), "L4": (8, 9)}


def test_bytes_and_flops_by_hand():
    shape = Shape(B=1, T=2, N=3, D=8, R=4)
    x, h, product = 2 * 6 * 8, 2 * 6 * 4, 2 * 6 * 8 * 4
    forward, backward = gemm_design(shape)
    assert sum(launch.dram for launch in forward) == 3 * x + 4 * h
    assert sum(launch.flops for launch in forward) == 2 * product
    assert sum(launch.flops for launch in backward) == 4 * product
    forward, backward = fused_design(shape)
    assert [launch.dram for launch in forward] == [2 * x + h]
    assert sum(launch.flops for launch in (*forward, *backward)) == 6 * product


@pytest.mark.parametrize("card", CARDS)
def test_the_plans_choose_what_is_predicted_to_be_faster(card):
    for R in BOTTLENECKS:
        shape = Shape(R=R)
        times = {design: sum(predicted(design, shape, CARDS[card])) for design in ("gemm", "fused")}
        chosen = "fused" if fused_up_to(CAPABILITIES[card]) >= R else "gemm"
        assert times[chosen] <= 1.01 * times[faster(shape, CARDS[card])], (card, R, times)


def test_no_prediction_beats_the_roofline():
    for card in CARDS.values():
        for R in BOTTLENECKS:
            assert all(0 < roofline_share(design, Shape(R=R), card) < 1 for design in ("gemm", "fused"))
