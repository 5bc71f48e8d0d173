"""The cost model: bytes by hand, and the launch plans' choice that rests on it."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench import choice
from bench.cost import BOTTLENECKS, CARDS, Shape, designs, faster, launches, predicted, roofline_share
from fe_adapter.kernels.plans import CHOICE


def test_bytes_and_flops_by_hand():
    shape = Shape(B=1, T=2, N=3, D=8, R=4)
    x, h, product = 2 * 6 * 8, 2 * 6 * 4, 2 * 6 * 8 * 4
    forward, backward = launches("gemm", shape, CARDS["H100"])
    assert sum(launch.dram for launch in forward) == 3 * x + 4 * h
    assert sum(launch.flops for launch in forward) == 2 * product
    assert sum(launch.flops for launch in backward) == 4 * product
    for design, dram in (("fused", [2 * x + h]), ("resident", [2 * x + h]), ("tail", [x + h, 2 * x + h])):
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


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("card", CARDS)
def test_the_plans_choose_what_is_predicted_to_be_faster(card, dynamic):
    for R in BOTTLENECKS:
        shape = Shape(R=R, dynamic=dynamic)
        times = {design: sum(predicted(design, shape, CARDS[card])) for design in designs(shape, CARDS[card])}
        rows = CHOICE[CARDS[card].capability]
        chosen = next((design for widest, design in rows.items() if widest >= R), "gemm")
        # one row serves an RTX 4090 and an L4: within less than what the model is good for
        assert times[chosen] <= 1.1 * times[faster(shape, CARDS[card])], (card, R, times)


def test_no_prediction_beats_the_roofline():
    for card in CARDS.values():
        for R in BOTTLENECKS:
            assert all(0 < roofline_share(design, Shape(R=R), card) < 1 for design in designs(Shape(R=R), card))


def test_the_table_of_designs_is_made_anew():
    assert choice.as_rows({64: "fused", 128: "fused", 384: "gemm"}) == {128: "fused"}
    assert choice.as_rows({384: "resident", 64: "gemm", 128: "resident"}) == {64: "gemm", 384: "resident"}
    assert {name: rows for name, rows, _ in choice.predicted()}["A100"] == {96: "fused", 384: "tail"}

    def record(R: int, **ms: float) -> dict:
        providers = {f"static {design}": {"ms": [value]} for design, value in ms.items()}
        return {"case": "layer", "point": {"pass": "both", "R": R}, "providers": providers}

    found = choice.measured({"records": [record(64, gemm=2, fused=1), record(384, gemm=2, fused=3, tail=1)]})
    assert found == {64: "fused", 384: "tail"}
