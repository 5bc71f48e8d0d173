"""The benchmark suite: what it may show, what it keeps, what it compares."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from bench import gpu
from bench.app import app as bench_app
from bench.cases import get_cases
from bench.cases.rivals import RIVALS, STAdapter, fla_conv1d, shifted_adds
from bench.measure.case import Point, Provider, SkippedError, measure
from bench.measure.harness import Contender, in_turns, time_once
from bench.measure.results import ROOT, Results
from bench.measure.worker import peak_rss
from bench.proof import checks
from bench.report import compare, plots, report
from bench.report.compare import ratio
from bench.report.readme import updated
from bench.suite import run as suite
from fe_adapter import FEAdapter, FusedFEAdapter
from fe_adapter.errors import InputError
from tests.bench import faulty_checks

CPU = torch.device("cpu")
ADAPTER = FEAdapter(8, 4, num_frames=2, dilation=1)


class Toy:
    """A case that computes nothing."""

    BASELINE = "rival"

    def __init__(self, **changes: Provider) -> None:
        self.changes = changes

    def points(self, device, quick):
        return [Point({"B": B}, rounds=3) for B in (1, 2, 4)]

    def providers(self, point, device):
        contender = Contender(lambda _: None, memory=lambda: {"peak": 2**20})
        return {name: Provider(lambda: contender, name) for name in ("rival", "ours")} | self.changes


@pytest.fixture
def toy(monkeypatch):
    """The only case there is; ours takes three times as long as its rival."""
    case = Toy()
    monkeypatch.setattr(suite, "get_cases", lambda: {"toy": case})
    times = {"rival": [2e-3, 2.1e-3, 2.2e-3, 2e-3, 2.1e-3], "ours": [6e-3, 6.3e-3, 6.6e-3, 6e-3, 6.3e-3]}
    monkeypatch.setattr("bench.measure.case.in_turns", lambda *_: times)
    return case


def test_contenders_take_turns_and_warm_up_does_not_count():
    calls = []
    contenders = {name: Contender(lambda _, name=name: calls.append(name)) for name in "ab"}
    clocks = {name: partial(time_once, contender) for name, contender in contenders.items()}
    seconds = in_turns(clocks, rounds=3, warmup=1, label="")
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert sorted("".join(calls[i : i + 2]) for i in range(0, 8, 2)) == ["ab", "ab", "ba", "ba"]


def test_the_ratio_cancels_drift_and_its_interval_holds_the_truth():
    random = np.random.default_rng(0)
    drift = np.linspace(1, 10, 40)
    old, new = (drift * scale * random.lognormal(0, 0.05, 40) for scale in (1.0, 1.2))
    paired = ratio(list(new), list(old))
    assert paired.low < 1.2 < paired.high
    assert 1.1 < paired.low <= paired.value <= paired.high < 1.3
    unpaired = ratio(list(new), list(old), paired=False)
    assert unpaired.high - unpaired.low > 3 * (paired.high - paired.low)
    assert ratio(list(new), list(old)) == paired
    assert str(ratio([2.0] * 4, [1.0] * 4)) == "2.00 (too few rounds for an interval)"


def test_one_wrong_provider_and_nothing_is_timed():
    def wrong() -> None:
        raise AssertionError("y: 3.0 times the allowed error")

    def step(_: object) -> None:
        pytest.fail("timed, though a provider was wrong")

    case = Toy(wrong=Provider(lambda: Contender(step, check=wrong)))
    record = measure("toy", case, Point({"B": 1}, rounds=1), CPU)
    assert record["providers"] == {}
    assert record["failures"] == {"wrong": "y: 3.0 times the allowed error"}
    shown = report.text({"f": {"machine": {"device": "here"}, "records": [record]}})
    assert "**Wrong**, so not timed: toy B=1, wrong: y: 3.0 times the allowed error" in shown


def test_whatever_goes_wrong_the_next_point_is_measured():
    def refuse() -> None:
        raise ValueError("two\nlines")

    def crash(_: object) -> None:
        raise RuntimeError("launch failed")

    for contender, reason in (
        (Contender(print, check=refuse), "ValueError: two"),
        (Contender(crash), "RuntimeError: launch failed"),
    ):
        case = Toy(wrong=Provider(lambda contender=contender: contender))
        record = measure("toy", case, Point({"B": 1}, rounds=1), CPU)
        assert record["providers"] == {}
        assert list(record["failures"].values()) == [reason]


def test_a_step_is_checked_at_its_own_number_of_frames(monkeypatch):
    """As would happen if a kernel for longer clips were wrong."""
    real = FusedFEAdapter.forward
    monkeypatch.setattr(FusedFEAdapter, "forward", lambda self, x: real(self, x) * (1 + 0.01 * (self.num_frames > 3)))
    for name in ("step", "ladder"):
        case = get_cases()[name]
        (point,) = case.points(CPU, quick=True)
        record = measure(name, case, point, CPU)
        assert record["providers"] == {}
        assert record["failures"]


def test_a_file_that_cannot_be_written_shows_at_once(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        Results(tmp_path)


def test_a_provider_that_cannot_run_is_named_with_its_reason():
    def missing() -> Contender:
        raise SkippedError("no C++ compiler")

    def too_large() -> Contender:
        raise torch.OutOfMemoryError

    case = Toy(a=Provider(missing), b=Provider(partial(fla_conv1d, ADAPTER)), c=Provider(too_large))
    record = measure("toy", case, Point({"B": 1}, rounds=1), CPU)
    assert record["skipped"] == {"a": "no C++ compiler", "b": "fla is not installed", "c": "out of memory"}
    assert set(record["providers"]) == {"rival", "ours"}


def test_without_the_baseline_there_are_no_figures():
    record = measure("toy", Toy(rival=Provider(partial(fla_conv1d, ADAPTER))), Point({"B": 1}, rounds=1), CPU)
    assert record["providers"] == {}
    assert "No figures: rival: fla is not installed." in report.text(
        {"f": {"machine": {"device": ""}, "records": [record]}}
    )


def test_every_point_is_on_disk_before_the_next_and_a_run_resumes(toy, tmp_path):
    path = tmp_path / "results.json"
    run = suite.run(Results(path), ["toy"])
    first = next(run)
    assert json.loads(path.read_text())["records"] == [first]
    run.close()
    rest = list(suite.run(Results(path, resume=True), ["toy"]))
    assert [record["point"]["B"] for record in rest] == [2, 4]
    assert json.loads(path.read_text())["records"] == [first, *rest]
    assert list(suite.run(Results(path, resume=True), ["toy"])) == []


def test_a_run_leaves_out_what_there_is_no_time_for(toy, monkeypatch):
    clock = [0.0]

    def measure(name, case, point, device):
        clock[0] += 2
        return {"case": name, "point": dict(point.parameters)}

    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(suite.time, "monotonic", lambda: clock[0])
    assert len(list(suite.run(Results(None), ["toy"], deadline=suite.FIRST + 1))) == 3
    clock[0] = 0.0
    monkeypatch.setattr(suite, "FIRST", 2)
    assert len(list(suite.run(Results(None), ["toy"], deadline=5))) == 2
    assert list(suite.run(Results(None), ["toy"], deadline=5)) == []


def test_a_run_resumes_on_the_same_machine_and_commit_only(tmp_path):
    path = tmp_path / "results.json"
    results = Results(path)
    results.content["machine"]["torch"] = "1.0"
    results.write()
    with pytest.raises(InputError, match=r"was measured with torch='1.0', this is .*; start it anew"):
        Results(path, resume=True)


def test_the_command_line_says_what_is_wrong(tmp_path):
    run = partial(bench_app, standalone_mode=False)
    with pytest.raises(InputError, match="no point of layer has 'B=77' in its name"):
        run(["layer", "--quick", "--point", "B=77"])
    with pytest.raises(InputError, match="case 'nothing' is none of block, ladder, layer, step"):
        run(["compare", "HEAD~1", "HEAD", "--case", "nothing"])
    out = tmp_path / "layer.json"
    run(["layer", "--quick", "--out", str(out)])
    assert run(["compare", str(out), str(out)]) is None
    content = json.loads(out.read_text())
    assert content["records"][0]["providers"]["static"]["bytes"]["saved"] > 0
    assert set(content["machine"]) >= {"device", "threads", "torch", "triton", "commit", "date"}


def test_a_design_can_be_forced_for_one_provider_alone(monkeypatch):
    monkeypatch.delenv("FE_ADAPTER_BACKEND", raising=False)
    seen = []
    layer = get_cases()["layer"]
    contender = Contender(lambda _: seen.append(os.environ.get("FE_ADAPTER_BACKEND")))
    work = mock.Mock(**{"contender.return_value": contender, "graphed_contender.return_value": contender})
    graphed = layer.graphed_design(work, torch.nn.Identity(), torch.nn.Identity(), "eager")
    graphed.step(graphed.prepare())
    assert seen == ["eager", None]

    def refuse(_: object) -> None:
        raise RuntimeError("FE_ADAPTER_DESIGN=fused cannot run here")

    work.contender.return_value = Contender(refuse)
    with pytest.raises(SkippedError, match="cannot run here"):
        layer.graphed_design(work, torch.nn.Identity(), torch.nn.Identity(), "fused")


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


def test_the_report_puts_what_we_lose_first(toy, tmp_path):
    results = Results(tmp_path / "suite-cpu.json")
    list(suite.run(results, ["toy"]))
    report.write(tmp_path)
    shown = (tmp_path / "REPORT.md").read_text()
    order = ("slower than a rival in 3 of 3", "| toy | B=", "larger than a rival in 0 of 3", "### toy")
    places = [shown.index(words) for words in order]
    assert places == sorted(places)
    for name in plots.names(results.content):
        assert (tmp_path / "plots" / f"suite-cpu-{name}.png").stat().st_size > 5000
    assert "toy-by-B" in plots.names(results.content)
    assert len((tmp_path / "suite-cpu.csv").read_text().splitlines()) == 1 + 3 * 2
    assert "Cut off" not in shown
    for kept in (1, 0):
        del results.content["records"][kept:]
        results.write()
        report.write(tmp_path)
        assert f"{3 - kept} points are not measured: " in (tmp_path / "REPORT.md").read_text()
    assert "Checks" not in shown
    results.content["checks"] = {"a": "passed", "b": "failed: y", "c": "not run"}
    shown = report.text({"f": results.content})
    assert "Checks before the timing: 1 of 3 passed." in shown
    assert "- **b**: failed: y" in shown
    assert "- **c**: not run" in shown
    list(suite.run(Results(tmp_path / "quick.json", quick=True), ["toy"]))
    assert list(report.load(tmp_path)) == ["suite-cpu"]


def test_the_readme_takes_its_tables_from_the_suite(tmp_path):
    results = Results(tmp_path / "suite-cpu.json")
    list(suite.run(results, ["layer", "step"], quick=True))
    readme = "a\n<!-- layer -->\n<!-- /layer -->\nb\n<!-- step -->\nold\n<!-- /step -->\nc\n"
    made = updated(readme, folder=tmp_path)
    assert "| 16 | static |" in made
    assert "| tiny | 1 × 4 |" in made
    assert "old" not in made
    assert updated(made, folder=tmp_path) == made
    results.content["records"] = []
    results.write()
    assert updated(readme, folder=tmp_path).count("Not measured yet.") == 2


def test_comparing_files_finds_what_got_slower(toy, tmp_path):
    paths = [tmp_path / name for name in ("old.json", "new.json")]
    for path in paths:
        list(suite.run(Results(path), ["toy"], point="B=1"))
    content = json.loads(paths[1].read_text())
    content["records"][0]["providers"]["ours"]["ms"] = [12.0, 12.1, 12.2, 12.0, 12.1]
    paths[1].write_text(json.dumps(content))
    found, missing = compare.compare_files(*paths)
    slower = [c.provider for c in found if c.is_slower(1.5)]
    assert (slower, missing) == (["ours"], [])
    del content["records"][0]["providers"]["ours"]
    paths[1].write_text(json.dumps(content))
    assert compare.compare_files(*paths)[1] == ["toy B=1 ours"]
    assert bench_app(["compare", *map(str, paths)], standalone_mode=False) == 1
    content["machine"]["threads"] = 64
    paths[1].write_text(json.dumps(content))
    with pytest.raises(InputError, match="times of two machines do not compare"):
        compare.compare_files(*paths)
    paths[1].write_text("[]")
    with pytest.raises(InputError, match="is no result file"):
        compare.compare_files(*paths)
    with pytest.raises(InputError, match="is no result file"):
        Results(paths[1], resume=True)


@pytest.mark.slow
def test_two_commits_are_timed_in_turns():
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    found = list(compare.compare_commits("HEAD", "HEAD", "layer", rounds=3, quick=True))
    assert [c.provider for c in found] == ["static", "dynamic"]
    with pytest.raises(InputError, match="'no-such-thing' is neither a file nor a commit"):
        next(compare.compare_commits("no-such-thing", "HEAD", "layer", rounds=1, quick=True))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_process_of_its_own_knows_its_peak():
    (point,) = get_cases()["layer"].points(CPU, quick=True)
    held = torch.ones(2**28)  # a GiB of ours is none of the child's
    assert 2**26 < peak_rss("layer", str(point), "static", steps=1) < held.nbytes


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_baselines_compute_a_static_adapter(channels_last):
    torch.manual_seed(0)
    adapter = FEAdapter(24, 8, num_frames=3, dilation=1)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 17, 24)
    st_adapter = STAdapter(adapter, channels_last)
    torch.testing.assert_close(st_adapter(x.clone()), adapter(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(shifted_adds(adapter)(x), adapter(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("library", ["causal_conv1d", "fla"])
def test_causal_convolutions_become_centred_ones(library, monkeypatch):
    """Stand-ins with those libraries' documented signatures: the layouts and the shift are ours to get right."""

    def causal_conv1d_fn(x, weight, bias=None):  # (batch, dim, length)
        K = weight.shape[1]
        return nn.functional.conv1d(nn.functional.pad(x, (K - 1, 0)), weight[:, None], bias, groups=len(weight))

    def fla_causal_conv1d(x, weight=None, bias=None):  # (batch, length, dim)
        return causal_conv1d_fn(x.transpose(1, 2), weight, bias).transpose(1, 2), None

    monkeypatch.setitem(sys.modules, "causal_conv1d", types.SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn))
    stand_in = types.SimpleNamespace(causal_conv1d=fla_causal_conv1d)
    monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.modules", types.ModuleType("fla.modules"))
    monkeypatch.setitem(sys.modules, "fla.modules.convolution", stand_in)
    torch.manual_seed(0)
    u, weight, bias = torch.randn(2, 5, 4, 6), torch.randn(6, 3), torch.randn(6)
    ours, theirs = (RIVALS[name](ADAPTER).convolution for name in ("shifted adds", library.replace("_", "-")))
    torch.testing.assert_close(theirs(u, weight, bias), ours(u, weight, bias))


def test_the_step_refuses_wrong_gradients():
    step = get_cases()["step"]
    (point,) = step.points(CPU, quick=True)
    net = step.Net(point, CPU)
    model = net.adapted(1)
    net.checked_contender(model, 1).check()
    model.vit.blocks[0].fe_adapter.up_proj.weight.register_hook(lambda gradient: 1.01 * gradient)
    with pytest.raises(AssertionError, match=r"gradients: .* times the error of plain adapters"):
        net.checked_contender(model, 1).check()
