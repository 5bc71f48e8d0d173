"""What layers and steps ask of the host, counted on a CUDA that is not there."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench.host import build
from bench.host.run import IMITATED, measured, with_case
from fe_adapter.errors import InputError
from fe_adapter.files import read_json, write_json


@pytest.fixture(autouse=True)
def _imitated():
    if reason := build.obstacle():
        pytest.skip(f"no CUDA can be imitated here: {reason}")


def test_a_layer_makes_few_launches_and_waits_for_none():
    found = measured("layer", rounds=3)
    for title, most in (("layer R=384, bf16", 5), ("layer R=384, autocast", 8)):
        for name in ("static", "dynamic"):
            assert found[title][name]["launches"] <= most
            assert found[title][name]["waits"] == 0
        assert found[title]["st-adapter"]["launches"] >= 30  # or the imitation does not see what is launched


def test_a_file_of_host_times_keeps_the_other_cases(tmp_path):
    path = tmp_path / "host.json"
    for case, launches in (("layer", 6), ("fit", 18), ("layer", 5)):
        write_json(path, with_case(path, case, 3, {"a title": {"static": {"launches": launches}}}))
    cases = read_json(path)["cases"]
    assert {name: cases[name]["tables"]["a title"]["static"]["launches"] for name in cases} == {"layer": 5, "fit": 18}
    assert cases["fit"]["rounds"] == 3
    for other in ({"records": []}, [], {"measured on": IMITATED}, {"measured on": IMITATED, "cases": []}):
        write_json(path, other)
        with pytest.raises(InputError, match=r"host\.json is no file of host times"):
            with_case(path, "layer", 3, {})


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="gcc is not installed"):
        measured("layer", rounds=1)
    with pytest.raises(InputError, match="case"):
        measured("layers", rounds=1)


def test_a_captured_step_of_fit_is_few_launches_and_no_wait():
    pytest.importorskip("timm", reason="timm is not installed")
    found = measured("fit", rounds=3)["fit ViT-Ti/16 8x8"]
    assert found["capture=on"]["launches"] <= 25
    assert found["capture=on"]["launches"] < found["capture=off"]["launches"] / 10
    for counts in found.values():
        assert counts["waits"] == 0
        assert counts["refused"] == 0
