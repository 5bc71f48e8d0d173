"""Runs of cases: whole at any moment, in the time there is, from the command line."""

from __future__ import annotations

import json
from functools import partial

import pytest

from bench.app import app as bench_app
from bench.measure.results import Results
from bench.suite import run as suite
from fe_adapter.errors import InputError


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


def test_the_command_line_says_what_is_wrong(tmp_path):
    run = partial(bench_app, standalone_mode=False)
    with pytest.raises(InputError, match="no point of layer has 'B=77' in its name"):
        run(["layer", "--quick", "--point", "B=77"])
    with pytest.raises(InputError, match="case 'nothing' is none of block, feed, ladder, layer, step"):
        run(["compare", "HEAD~1", "HEAD", "--case", "nothing"])
    out = tmp_path / "layer.json"
    run(["layer", "--quick", "--out", str(out)])
    assert run(["compare", str(out), str(out)]) is None
    content = json.loads(out.read_text())
    assert content["records"][0]["providers"]["static"]["bytes"]["saved"] > 0
    assert set(content["machine"]) >= {"device", "threads", "torch", "triton", "commit", "date"}
