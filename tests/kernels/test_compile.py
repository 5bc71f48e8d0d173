"""The kernels, compiled for GPUs that are not there."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.app import app as bench_app
from bench.measure.results import FOLDER
from bench.proof import launches as cases
from bench.proof import summary
from bench.proof.ahead import ARCHS, recorded_calls
from fe_adapter.errors import InputError
from fe_adapter.kernels import fused, plans


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", cases.FAST, ids=str)
def test_no_spill_tensor_cores_and_every_barrier(case, target):
    reports = list(cases.compile_cases((case,), (target,)))
    assert {report.kernel for report in reports} == {
        "conv_fwd_kernel", "conv_bwd_activation_kernel", "conv_bwd_hidden_kernel", "add_sums_kernel",
        "fused_fwd_kernel", "fused_bwd_kernel",
    }  # fmt: skip
    assert {(report.kernel, *cases.problems(report)) for report in reports} == {(r.kernel,) for r in reports}
    wholes = [report for report in reports if report.kernel.startswith("fused")]
    assert {report.design for report in wholes} == {"fused", "tail"} | ({"resident"} if target == "sm_90" else set())
    assert all(report.async_copy for report in wholes)


def test_no_spill_in_causal_kernels():
    reports = list(cases.compile_cases((cases.Case(dynamic=True, causal=True),), ("sm_90",)))
    assert len({report.kernel for report in reports}) == 6
    assert [report for report in reports if cases.problems(report)] == []


@pytest.mark.parametrize("target", ARCHS)
def test_the_table_holds_what_the_plans_may_choose(target):
    """For any R, and any D, which only masks depend on; but for how many tiles of ``c`` stay in shared memory."""

    def signature(kernel, arguments, options):
        return cases.signature(kernel, arguments, {**options, "PARTS": None})

    compiled = {signature(*call[:3]) for call in cases.distinct(cases.CASES, cases.TABLE, (target,))}
    for R, D, (dtype, stream, _) in itertools.product(range(16, 657, 16), (768, 800), cases.PRECISIONS):
        case = cases.Case(dtype, stream, bottleneck=R, width=D)
        for _, call in cases.launches(case, target, chosen_only=True):
            assert signature(*call) in compiled, (str(case), call[0].__name__)


def test_the_table_holds_every_width():
    """One D stands for all of them."""
    compiled = {cases.signature(*call[:3]) for call in cases.distinct((), cases.TABLE, ("sm_90",))}
    for R, D, (dtype, stream, _) in itertools.product(cases.BOTTLENECKS, cases.WIDTHS, cases.PRECISIONS):
        case = cases.Case(dtype, stream, bottleneck=R, width=D)
        for _, call in cases.launches(case, "sm_90", chosen_only=True):
            assert cases.signature(*call) in compiled, (str(case), call[0].__name__)


def test_one_compile_serves_all_sizes():
    """Of a convolution the compiler knows the channels alone, of other kernels also D and the strides of inputs."""
    served = set()
    for case in (cases.Case(), cases.Case(kernel=(3, 3, 3), dynamic=True)):
        for _, (kernel, arguments, _) in cases.launches(case, "sm_90"):
            parameters = zip(kernel.params, arguments, strict=False)
            known = {p.name for p, value in parameters if isinstance(value, int) and not p.do_not_specialize}
            strides = {f"stride_{name}_{axis}" for name in ("x", "dy") for axis in "btl"}
            assert known <= {"R", "C", "D", *strides}, kernel.__name__
            served.add(kernel.__name__)
    assert len(served) == 6


@pytest.mark.slow
def test_a_spatial_kernel_does_not_spill_with_all_there_is():
    for kernel in ((3, 3, 3), (3, 1, 3)):
        case = cases.Case(torch.float32, dynamic=True, activation="gelu", max_dilation=2.0, kernel=kernel)
        assert [report for report in cases.compile_cases((case,), ("sm_80",)) if cases.problems(report)] == []


def test_the_steps_of_gelu2bit_compile():
    reports = [cases.compile_call(*call) for call in cases._step_calls("sm_80")]
    assert {report.kernel for report in reports} == {"pack_kernel", "multiply_kernel"}
    assert [report for report in reports if cases.problems(report)] == []


def test_problems_are_seen():
    report = next(cases.compile_cases((cases.FAST[0],), ("sm_80",)))
    bad = dataclasses.replace(report, kernel="fused_bwd_kernel", tensor_core=0, spilled=8, smem=2**20)
    bad = dataclasses.replace(bad, is_serialized=True, tensor_memory=576)
    for design, barriers in (("fused", 2), ("resident", 2), ("tail", 1)):
        assert len(cases.problems(dataclasses.replace(bad, design=design, barriers=barriers))) == 6
        assert len(cases.problems(dataclasses.replace(bad, design=design, barriers=barriers + 1))) == 5


def test_a_summary_has_the_worst_of_every_launch(tmp_path):
    report = next(cases.compile_cases((cases.FAST[0],), ("sm_80",)))
    usual = dataclasses.replace(report, registers=90, smem=1024, blocks_per_sm=9)
    heavy = dataclasses.replace(report, registers=99, smem=512, blocks_per_sm=4, case="heavy")
    spills = dataclasses.replace(usual, design="fused", spilled=8, case="spills")
    path = tmp_path / "launches.csv"
    for number, _ in enumerate(summary.written((usual, heavy, spills), path)):
        with path.open(newline="") as file:  # whole after each
            rows = list(csv.DictReader(file))
        assert sum(int(row["launches"]) for row in rows) == number + 1
    names = ("design", "registers", "smem", "blocks_per_sm", "case")
    assert [rows[0][name] for name in names] == [report.design, "99", "1024", "4", "heavy"]
    assert "spills 8 B a thread" in rows[1]["problems"]
    assert rows[1]["case"] == "spills"
    list(summary.written((usual, heavy, spills), path, every_launch=True))
    assert len(path.read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("file", sorted((FOLDER / "compile").glob("*.csv")), ids=lambda file: file.stem)
def test_the_committed_summaries_are_clean(file):
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["target"] for row in rows} == set(ARCHS)
    assert {(row["spilled"], row["problems"]) for row in rows} == {("0", "")}


TF32 = {32: "fused", 128: "fused", 384: "gemm"}
CHOSEN = {  # by target: the design for R in bf16
    "sm_80": {32: "fused", 96: "fused", 128: "tail", 384: "tail", 512: "tail", 640: "gemm", 33: "gemm"},
    "sm_89": {32: "fused", 640: "fused", 656: "gemm"},
    "sm_90": {32: "resident", 384: "resident", 512: "gemm", 640: "gemm", 33: "gemm"},
    "sm_100": {32: "resident", 512: "resident"},
    "gfx942": {32: "gemm"},
}


@pytest.mark.parametrize("target", CHOSEN)
def test_the_plans_choose(target):
    taps = {kernel: torch.empty(1, 1, *kernel) for kernel in ((3, 1, 1), (9, 1, 1), (3, 3, 3))}
    x = torch.empty(1, 8, 5, 768, dtype=torch.bfloat16)
    with cases.plans_for(target):
        assert {R: plans.choose_design(x, x.dtype, R, taps[3, 1, 1]) for R in CHOSEN[target]} == CHOSEN[target]
        assert plans.choose_design(x, x.dtype, 64, taps[9, 1, 1]) == "gemm"
        assert plans.choose_design(x, x.dtype, 64, taps[3, 3, 3]) == "gemm"
        assert plans.choose_design(x[..., :760], x.dtype, 64, taps[3, 1, 1]) == "gemm"
        if target == "sm_90":
            wide = x.float()
            assert {R: plans.choose_design(wide, wide.dtype, R, taps[3, 1, 1]) for R in TF32} == TF32


def test_a_grid_that_leaves_the_card_idle_is_for_gemm():
    taps = torch.empty(1, 1, 3, 1, 1)
    with cases.plans_for("sm_90"), mock.patch.object(plans, "multiprocessors", return_value=132):
        for R, B, design in ((384, 2, "gemm"), (384, 3, "resident"), (128, 1, "resident")):
            x = torch.empty(B, 8, 197, 768, dtype=torch.bfloat16, device="meta")
            assert plans.choose_design(x, x.dtype, R, taps) == design
    with cases.plans_for("sm_100"), mock.patch.object(plans, "multiprocessors", return_value=132):
        x = torch.empty(2, 8, 197, 768, dtype=torch.bfloat16, device="meta")
        assert plans.choose_design(x, x.dtype, 512, taps) == "resident"  # of 64 rows, so that there are twice as many


def test_resident_is_refused_where_it_has_no_plan():
    x, taps = torch.empty(1, 8, 5, 768), torch.empty(1, 1, 3, 1, 1)
    with cases.plans_for("sm_80"):
        reasons = plans.refusals("resident", x, torch.float32, 384, taps)
    assert reasons == [
        "its tiles are laid out for the shared memory of compute capability 9.0, 10.0",
        "it computes in bfloat16 and float16, not in torch.float32",
    ]
    with cases.plans_for("sm_90"):
        assert plans.refusals("resident", x, torch.bfloat16, 384, taps) == []
        (reason,) = plans.refusals("resident", x, torch.bfloat16, 640, taps)
        assert reason == "R=640 is more than the 512 columns that shared memory holds"
        (reason,) = plans.refusals("resident", torch.empty(1, 65, 5, 768), torch.bfloat16, 512, taps)
        assert reason == "65 frames are more than the 64 rows of a program"


def test_a_clip_beyond_32_bits_is_refused():
    x, taps = torch.empty(1, 16, 2**19, 256, device="meta"), torch.empty(1, 1, 3, 1, 1)
    with cases.plans_for("sm_90"):
        for design in ("fused", "resident", "tail"):
            assert "offsets within a clip have 32 bits" in plans.refusals(design, x, torch.bfloat16, 64, taps)
            assert plans.refusals(design, x[:, :15], torch.bfloat16, 64, taps) == []
        assert plans.choose_design(x, torch.bfloat16, 64, taps) == "gemm"


def test_recording_puts_the_kernels_back():
    before = fused._fused_fwd_kernel
    with recorded_calls(fused):
        assert fused._fused_fwd_kernel is not before
    assert fused._fused_fwd_kernel is before


def test_what_cannot_be_written_or_compiled_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        next(summary.written((), tmp_path))
    with pytest.raises(InputError, match="bf16 alone, in which sm_75 cannot compute"):
        bench_app(["compile", "--quick", "--target", "sm_75"], standalone_mode=False)
