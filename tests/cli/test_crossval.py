"""Cross-validation from the command line, fold by fold."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fe_adapter.cli import app as cli
from fe_adapter.data import layouts
from tests.published import make_dfew, make_frames, make_lists

pytest.importorskip("timm")
pytest.importorskip("accelerate")

BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}']
FAST = [*BACKBONE, "--batch-size", "8", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two folds of RAVDESS, which has six."""
    monkeypatch.setitem(layouts.LAYOUTS, "ravdess", dataclasses.replace(layouts.LAYOUTS["ravdess"], num_folds=2))
    for actor in (1, 5, 9):
        for emotion in (1, 3):
            make_frames(tmp_path / f"data/Actor_{actor:02d}/02-01-{emotion:02d}-01-01-01-{actor:02d}")
    return f"ravdess:{tmp_path / 'data'}"


def test_folds_are_trained_tested_and_summed_up_and_done_once(data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["crossval", data, "--out", str(out), "--protocol", "2x2x1", *FAST]
    assert cli.run([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["protocol"] == "2x2x1"
    assert summary["select_on_test"] is False
    for epoch in ("last", "best"):
        folds = summary[epoch]["folds"]
        assert [fold["num_clips"] for fold in folds] == [2, 2]
        assert summary[epoch]["mean_war"] == pytest.approx(sum(fold["war"] for fold in folds) / 2)
        assert summary[epoch]["pooled"]["num_clips"] == 4
        assert (out / epoch / "pooled" / "confusion.png").exists()
        assert (out / "fold-1" / f"eval-{epoch}" / "confusion.png").exists()
    settings = [json.loads((out / f"fold-{k}" / "settings.json").read_text()) for k in (1, 2)]
    assert [s["fold"] for s in settings] == [1, 2]

    first = (out / "fold-1" / "eval-last" / "metrics.json").stat().st_mtime_ns
    (out / "fold-2" / "eval-last" / "metrics.json").unlink()  # as if it had been interrupted here
    assert cli.run(arguments) == 0
    text = capsys.readouterr()
    assert "mean ± sd" in text.out
    assert "pooled" in text.out
    assert "fold 2" in text.err
    assert "fold 1\n" not in text.err
    assert (out / "fold-1" / "eval-last" / "metrics.json").stat().st_mtime_ns == first
    assert cli.run([*arguments, "--lr", "1e-3"]) == 2
    assert "is of a cross-validation with other options" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fe_adapter.train.budget.MemoryBudget.fit", "fe_adapter.evaluate.run.evaluate"])
def test_ctrl_c_ends_all_of_it(data, tmp_path, monkeypatch, capsys, command):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = ["crossval", data, "--out", str(out), "--protocol", "2x1x1", *FAST]
    with monkeypatch.context() as patched:
        patched.setattr(command, interrupt)
        assert cli.run(arguments) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "fe-adapter: interrupted"
    assert not (out / "fold-2").exists()
    assert cli.run(arguments) == 0


def test_what_is_chosen_on_the_test_split_says_so(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.run(["crossval", data, "--out", str(out), "--protocol", "2x1x1", *FAST, "--select-on-test"]) == 0
    assert "was chosen on its own test split: that row is no test" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["select_on_test"] is True
    best = json.loads((out / "fold-1/best/adapter_config.json").read_text())
    assert best["classifier"]["clip_sampling"]["select_on_test"] is True
    assert json.loads((out / "fold-1/eval-best/metrics.json").read_text())["select_on_test"] is True
    assert json.loads((out / "fold-1/eval-last/metrics.json").read_text())["select_on_test"] is False


def test_wrong_use_is_refused_before_the_first_fold(data, tmp_path, capsys):
    for arguments, message in (
        ([str(make_lists(tmp_path / "lists"))], "has no folds"),
        ([f"list:{tmp_path / 'lists'}"], "has no folds"),
        ([data, "--protocol", "16"], "is no FRAMESxCLIPSxCROPS"),
        ([data, "--num-frames", "8"], "--num-frames 8, but the protocol 16x1x1 says 16"),
        ([data, "--no-such-option", "8"], "No such option"),
        ([data, "--lr", "nan"], "lr=nan"),
    ):
        assert cli.run(["crossval", *arguments, *FAST, "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1], lines
    assert cli.run(["crossval", data, "--protocol", "2x1x1", *FAST, "--out", str(tmp_path / "out")]) == 0


def test_published_figures_stand_beside_ours(tmp_path, capsys):
    root = make_dfew(tmp_path / "data")
    run = tmp_path / "run"
    assert cli.run(["train", f"dfew:{root}", "--fold", "1", "--num-frames", "2", *FAST, "--out", str(run)]) == 0
    capsys.readouterr()
    assert cli.run(["eval", str(run), f"dfew:{root}", "--protocol", "2x2x2"]) == 0
    text = capsys.readouterr().out
    assert "fold 1 alone" in text
    assert "60.89" in text  # FE-Adapter's
    assert json.loads((run / "eval/metrics.json").read_text())["views"] == "2x2x2"
