"""The cost model: bytes by hand, and the launch plans' choice that rests on it."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.proof.launches import plans_for
from bench.tuning import choice
from bench.tuning.cost import BATCHES, BOTTLENECKS, CARDS, Shape, designs, launches, predicted, roofline_share
from fe_adapter.kernels import plans


def test_bytes_and_flops_by_hand():
    shape = Shape(B=1, T=2, N=3, D=8, R=4)
    x, h, product = 2 * 6 * 8, 2 * 6 * 4, 2 * 6 * 8 * 4
    forward, backward = launches("gemm", shape, CARDS["H100"])
    # h: the bias, then the product on it, then read, and as much of c; x, twice: the product's copy; and the product
    assert sum(launch.dram for launch in forward) == (1 + 2 + 2) * x + (3 + 2 + 1) * h
    assert sum(launch.flops for launch in forward) == 2 * product
    assert sum(launch.flops for launch in backward) == 4 * product
    for design, dram in (("fused", [2 * x + h]), ("resident", [2 * x + h]), ("tail", [h, x + 2 * h, 2 * x + h])):
        forward, backward = launches(design, shape, CARDS["H100"])
        assert [launch.dram for launch in forward] == dram
        assert sum(launch.flops for launch in (*forward, *backward)) == 6 * product


def test_resident_reads_less_through_l2_by_what_stays_on_the_chip():
    shape = Shape(R=384)
    fused, resident = (launches(design, shape, CARDS["H100"])[0][0] for design in ("fused", "resident"))
    assert resident.dram == fused.dram
    assert fused.l2 - resident.l2 == (6 - 2) * shape.x + (12 - 1) * shape.h  # passes of x over 64 or 192 columns; of c


def test_a_dynamic_dilation_costs_vector_arithmetic_and_a_wide_stream_bytes():
    for design in designs(Shape(), CARDS["H100"]):
        plain, dynamic, wide = (
            launches(design, shape, CARDS["H100"]) for shape in (Shape(), Shape(dynamic=True), Shape(stream=4))
        )
        for direction in range(2):
            totals = [
                [sum(getattr(launch, name) for launch in form[direction]) for name in ("dram", "vector")]
                for form in (plain, dynamic, wide)
            ]
            assert totals[1][0] == totals[0][0] < totals[2][0]
            assert totals[2][1] == totals[0][1] < totals[1][1]


def test_few_programs_take_as_long_as_one_to_each_multiprocessor():
    card = CARDS["H100"]
    one, many, more = (launches("resident", Shape(B=B, R=384), card)[0][0]._bounds(card)["math"] for B in (1, 10, 11))
    assert one == pytest.approx(many)
    assert more > 1.5 * many  # 13, 130 and 143 programs on 132 multiprocessors


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CARDS)
def test_the_plans_choose_what_is_predicted_to_be_faster(name, dynamic):
    """Few rules serve all: at eight clips within less than what the model is good for, at fewer within twice."""
    card = CARDS[name]
    target = "sm_{}{}".format(*card.capability)
    for R, B in itertools.product(BOTTLENECKS, BATCHES):
        shape = Shape(B=B, R=R, dynamic=dynamic)
        times = {design: sum(predicted(design, shape, card)) for design in designs(shape, card)}
        x = torch.empty(B, shape.T, shape.N, shape.D, dtype=torch.bfloat16, device="meta")
        with plans_for(target), mock.patch.object(plans, "multiprocessors", return_value=card.multiprocessors):
            chosen = plans.choose_design(x, x.dtype, R, torch.empty(R, 1, 3, 1, 1))
        worst = 1.15 if B >= 8 else 2.1
        assert times[chosen] <= worst * min(times.values()), (R, B, chosen, times)


def test_no_prediction_beats_the_roofline():
    for card in CARDS.values():
        for R in BOTTLENECKS:
            assert all(0 < roofline_share(design, Shape(R=R), card) < 1 for design in designs(Shape(R=R), card))


def test_the_table_of_designs_is_made_anew():
    assert choice.as_rows({64: "fused", 128: "fused", 384: "gemm"}) == {128: "fused"}
    assert choice.as_rows({384: "resident", 64: "gemm", 128: "resident"}) == {64: "gemm", 384: "resident"}
    assert {name: rows for name, rows, _ in choice.predicted()}["A100"] == {96: "fused", 512: "tail"}

    def record(R: int, **ms: float) -> dict:
        providers = {f"static {design} graphed": {"ms": [value]} for design, value in ms.items()}
        return {"case": "layer", "point": {"pass": "both", "R": R}, "providers": providers}

    found = choice.measured({"records": [record(64, gemm=2, fused=1), record(384, gemm=2, fused=3, tail=1)]})
    assert found == {64: "fused", 384: "tail"}
