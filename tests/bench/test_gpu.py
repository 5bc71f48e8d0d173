"""What `make gpu` runs: every check has an outcome, and it needs torch and Triton alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch

from bench import gpu
from bench.app import app as bench_app
from bench.measure.results import ROOT, Results
from bench.proof import checks
from fe_adapter import FusedFEAdapter
from fe_adapter.errors import InputError
from tests.bench import faulty_checks

CPU = torch.device("cpu")


def test_a_check_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("FE_ADAPTER_DESIGN", raising=False)
    with pytest.raises(RuntimeError, match="cannot run here"):
        checks.check(CPU, "gemm", torch.float32, checks.TINY, tf32=True)
    assert "FE_ADAPTER_DESIGN" not in os.environ
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    "fault",
    [
        lambda y, x: y * 1.2,  # a wrong product
        lambda y, x: y + torch.finfo(y.dtype).eps * y,  # prefix tokens that do not pass
        lambda y, x: y + 1e-3 * torch.rand(y.shape).to(y) * (x != 0),  # other bits every time
    ],
    ids=["product", "prefix", "bits"],
)
def test_a_check_sees_planted_faults(fault, monkeypatch):
    checks.check(CPU, "eager", torch.bfloat16, checks.TINY)
    real = FusedFEAdapter.forward
    monkeypatch.setattr(FusedFEAdapter, "forward", lambda self, x: fault(real(self, x), x))
    with pytest.raises(AssertionError):
        checks.check(CPU, "eager", torch.bfloat16, checks.TINY)


def test_every_check_on_the_gpu_has_an_outcome(tmp_path, monkeypatch):
    results = Results(tmp_path / "results.json")
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 2)  # one process at a time
    gpu.run_checks(results, faulty_checks.get_checks, math.inf, "ends")
    assert json.loads(results.path.read_text())["checks"] == {
        "ends right": "passed",
        "ends wrong": "failed: AssertionError: y: 3.0 times the allowed error",
        "ends crash": "failed: its process ended with code 3",
        "ends skip": "skipped: no GPU",
        "ends right again": "passed",
    }
    gpu.run_checks(results, faulty_checks.get_checks, time.monotonic())
    assert set(results.content["checks"].values()) == {"not run"}
    worker = gpu.Checker(faulty_checks.get_checks)
    assert worker.run("hangs", time.monotonic() + 0.1) == "not run"
    monkeypatch.setattr(gpu, "HANGS", 0.1)
    assert worker.run("hangs", math.inf) == "failed: not done after 0.1 s"
    worker.end()
    assert not worker.process.is_alive()


WITHOUT = ("einops", "numpy", "rich", "safetensors", "tomli", "typer", "timm", "peft")  # what pyproject.toml asks for


@pytest.fixture
def bare(tmp_path):
    """Run Python as if torch, Triton and NumPy for its interpreter alone were installed; or not even NumPy."""

    def run(*arguments: str, numpy: bool, **environment: str) -> str:
        for name in WITHOUT:
            error = f"raise ModuleNotFoundError('no {name}', name='{name}')\n"
            (tmp_path / f"{name}.py").write_text(error * (name != "numpy" or not numpy))
        if numpy:
            (tmp_path / "numpy.py").unlink()
        path = os.pathsep.join((str(tmp_path), str(ROOT)))
        command = [sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return done.stdout

    return run


def test_make_gpu_needs_torch_and_triton_alone(bare, tmp_path):
    out = tmp_path / "results.json"
    bare("-m", "bench.gpu", "--quick", "--out", str(out), numpy=False, TRITON_INTERPRET="0")
    content = json.loads(out.read_text())
    assert {outcome.partition(":")[0] for outcome in content["checks"].values()} == {"passed", "skipped"}
    records = {record["case"]: record for record in content["records"]}
    assert {"static", "dynamic", "plain dynamic"} <= set(records["layer"]["providers"])
    assert records["step"]["skipped"]["static"] == "timm is not installed"
    assert records["ladder"]["skipped"] == {"all of them": "timm is not installed"}


def test_the_checks_run_kernels_without_other_libraries(bare):
    script = """
import torch
from bench.proof.checks import get_checks
from tests.kernels.interpreter import run_time_ranges
checks = get_checks(torch.device("cpu"), quick=True)
with run_time_ranges():
    for name in ("gemm: static, bf16, tiny", "resident: dynamic, bf16, tiny", "steps of gelu2bit"):
        checks[name]()
        print(name)
"""
    done = bare("-c", script, numpy=True, TRITON_INTERPRET="1").splitlines()
    assert done == ["gemm: static, bf16, tiny", "resident: dynamic, bf16, tiny", "steps of gelu2bit"]


def test_without_a_gpu_make_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU here; --quick runs on a CPU"):
        gpu.main([])
    with pytest.raises(InputError, match="no check has 'nothing' in its name"):
        gpu.main(["--quick", "--check", "nothing"])


def test_without_a_gpu_its_kernels_are_not_shown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in ("kernels", "tiles"):
        with pytest.raises(InputError, match="there is no GPU here"):
            bench_app([command], standalone_mode=False)


def test_a_kernel_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    from bench.tuning import profile

    def layer_step(R: int, dilation: int | str) -> None:
        raise RuntimeError("a launch failed")

    monkeypatch.setattr(profile, "serves", lambda *_: True)
    monkeypatch.setattr(profile, "layer_step", layer_step)
    results = Results(tmp_path / "results.json")
    gpu.profile_kernels(results, deadline=math.inf)
    assert {record["failed"] for record in results.content["kernels"]} == {"RuntimeError: a launch failed"}
    assert "kernels of R=64 dilation=dynamic tail: RuntimeError: a launch failed" in capsys.readouterr().out


def test_what_was_not_run_is_listed():
    record = {"case": "layer", "point": {"B": 1}}
    kernels = [{"R": 64, "dilation": 1, "design": "gemm", "failed": "not run"}]
    content = {"checks": {"a": "passed", "b": "not run"}, "records": [record], "planned": ["layer B=1", "step B=1"]}
    assert gpu.not_run(content | {"kernels": kernels}) == [
        "check b",
        "step B=1",
        "kernels of R=64 dilation=1 gemm: not run",
    ]
    assert gpu.not_run(content | {"checks": {}, "planned": ["layer B=1"]}) == []
