"""Ratios, the report, the README's tables and comparisons."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from bench.app import app as bench_app
from bench.host.run import with_case
from bench.measure.results import ROOT, Results
from bench.report import compare, plots, report
from bench.report.compare import ratio
from bench.report.readme import updated
from bench.suite import run as suite
from fe_adapter.errors import InputError
from fe_adapter.files import write_json


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
    readme, page = "a\n<!-- step -->\nold\n<!-- /step -->\nc\n", "b\n<!-- layer -->\n<!-- /layer -->\n"
    made = updated(readme, folder=tmp_path)
    assert "| 16 | static |" in updated(page, "docs/benchmarks.md", tmp_path)
    assert "| tiny | 1 × 4 |" in made
    assert "old" not in made
    assert updated(made, folder=tmp_path) == made
    results.content["records"] = []
    results.write()
    assert updated(readme, folder=tmp_path).count("Not measured yet.") == 1
    assert updated(page, "docs/benchmarks.md", tmp_path).count("Not measured yet.") == 1


def fake_gpu_run(date="2026-01-02"):
    """A result file of `bench.gpu`: a layer, and a step of which one provider could not be captured."""

    def provider(role, ms, peak=None):
        return {"role": role, "ms": [ms] * 5, "bytes": {} if peak is None else {"peak": peak * 2**20}}

    layer = {
        "st-adapter": provider("rival", 2.0, 100), "static": provider("ours", 1.0, 50),
        "static gemm graphed": provider("design", 9.0), "plain dynamic": provider("rival", 50.0),
        "st-adapter graphed": provider("rival", 0.8), "static graphed": provider("ours", 0.2, 40),
    }  # fmt: skip
    step = {"full fine-tuning": provider("rival", 40.0, 900), "static": provider("ours", 30.0, 600)}
    common = {"command": "python -m bench", "seconds": 1.0, "skipped": {}, "failures": {}}
    records = [
        {"case": "layer", "point": {"pass": "both", "B": 8, "T": 4, "R": 64}, "baseline": "st-adapter",
         "providers": layer, **common},
        {"case": "step", "point": {"vit": "ViT-B/16", "B": 8, "T": 4}, "baseline": "full fine-tuning",
         "providers": step, **common},
    ]  # fmt: skip
    machine = {"device": "a card", "torch": "2", "date": date, "commit": "0123456789ab"}
    return {"machine": machine, "checks": {}, "records": records}


def test_the_readme_leads_with_the_newest_gpu(tmp_path):
    write_json(tmp_path / "old.json", fake_gpu_run("2025-12-31"))
    write_json(tmp_path / "new.json", fake_gpu_run())
    made = updated("<!-- gpu -->\n<!-- /gpu -->\n" + "".join(f"<!-- {n} -->\n<!-- /{n} -->" for n in ("demo", "step")),
                   folder=tmp_path)  # fmt: skip
    assert "| layer, 8 × 4, R=64 | st-adapter | 2.00 | 0.80 | 100 |" in made
    assert "| | **static** | 1.00 (0.50×) | 0.20 (0.25×) | 50 / 40 |" in made
    assert "| step, ViT-B/16, 8 × 4 | full fine-tuning | 40.00 | not measured | 900 |" in made
    assert "2026-01-02, commit 0123456." in made


def test_plots_set_eager_beside_captured(tmp_path):
    figures = plots.draw(fake_gpu_run())
    assert list(figures) == ["layer-times", "layer-designs", "step-times"]
    (axes,) = figures["layer-times"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["st-adapter", "static", "plain dynamic"]
    assert [text.get_text() for text in axes.texts] == [
        "2.00  1.00×", "0.80  1.00×", "1.00  0.50×", "0.20  0.25×", "50.0  25.00× ▸",
    ]  # fmt: skip
    assert max(bar.get_width() for bar in axes.patches) < 3  # what is far slower does not hide the rest
    wide = fake_gpu_run()
    wide["records"][0]["providers"]["static"]["ms"] = [1.0, 1.0, 1.0, 9.0, 9.0]
    (axes,) = plots.draw(wide)["layer-times"].axes
    assert len(axes.lines) == len(axes.patches) - 1  # a whisker on every bar that is not cut off
    labels = [label.get_text() for label in figures["layer-designs"].axes[0].get_yticklabels()]
    assert labels == ["st-adapter", "static", "static gemm"]


def test_host_times_say_that_they_are_of_an_imitation(tmp_path):
    path = tmp_path / "host.json"
    write_json(path, with_case(path, "fit", 3, {"fit": {"capture=on": {"launches": 18.0, "waits": 0.0}}}))
    made = updated("<!-- host -->\n<!-- /host -->", "docs/kernels.md", tmp_path)
    assert "| fit | capture=on | 18 | 0 | |" in made
    assert "an imitated CUDA: launches return at once and compute nothing" in made


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
