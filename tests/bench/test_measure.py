"""What is timed, in what order, what it may show, and what a result file keeps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from bench.cases import get_cases
from bench.cases.rivals import fla_conv1d
from bench.measure.case import Point, Provider, SkippedError, measure
from bench.measure.harness import Contender, in_turns, time_once
from bench.measure.results import Results
from bench.measure.worker import peak_rss
from bench.report import report
from fe_adapter import FEAdapter
from fe_adapter.errors import InputError
from tests.bench.conftest import Toy

CPU = torch.device("cpu")
ADAPTER = FEAdapter(8, 4, num_frames=2, dilation=1)


def test_contenders_take_turns_and_warm_up_does_not_count():
    calls = []
    contenders = {name: Contender(lambda _, name=name: calls.append(name)) for name in "ab"}
    clocks = {name: partial(time_once, contender) for name, contender in contenders.items()}
    seconds = in_turns(clocks, rounds=3, warmup=1, label="")
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert sorted("".join(calls[i : i + 2]) for i in range(0, 8, 2)) == ["ab", "ab", "ba", "ba"]


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


def test_a_run_resumes_on_the_same_machine_and_commit_only(tmp_path):
    path = tmp_path / "results.json"
    results = Results(path)
    results.content["machine"]["torch"] = "1.0"
    results.write()
    with pytest.raises(InputError, match=r"was measured with torch='1.0', this is .*; start it anew"):
        Results(path, resume=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_process_of_its_own_knows_its_peak():
    (point,) = get_cases()["layer"].points(CPU, quick=True)
    held = torch.ones(2**28)  # a GiB of ours is none of the child's
    assert 2**26 < peak_rss("layer", str(point), "static", steps=1) < held.nbytes
