"""The kernels, compiled for GPUs that are not there."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench import compile as cases
from bench.ahead import recorded_calls
from fe_adapter.kernels import fused


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", cases.FAST, ids=str)
def test_no_spill_tensor_cores_and_every_barrier(case, target):
    reports = list(cases.compile_cases((case,), (target,)))
    assert {report.kernel for report in reports} == {
        "conv_fwd_kernel", "conv_bwd_activation_kernel", "conv_bwd_hidden_kernel", "fused_fwd_kernel",
        "fused_bwd_kernel",
    }  # fmt: skip
    assert {(report.kernel, *cases.problems(report)) for report in reports} == {(r.kernel,) for r in reports}
    assert all(report.async_copy for report in reports if report.kernel.startswith("fused"))


def test_problems_are_seen():
    report = next(cases.compile_cases((cases.FAST[0],), ("sm_80",)))
    fused_report = dataclasses.replace(report, kernel="fused_bwd_kernel", tensor_core=0, barriers=2, spilled=8)
    fused_report = dataclasses.replace(fused_report, smem=2**20, is_serialized=True)
    assert len(cases.problems(fused_report)) == 5


def test_recording_puts_the_kernels_back():
    before = fused._fused_fwd_kernel
    with recorded_calls(fused):
        assert fused._fused_fwd_kernel is not before
    assert fused._fused_fwd_kernel is before
