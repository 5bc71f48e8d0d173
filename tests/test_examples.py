"""Every script in examples/, run as its docstring says, on a tiny backbone and drawn videos."""

from __future__ import annotations

import ast
import csv
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fe_adapter import FEAdapterConfig, VideoClassifier, load_classifier, predict_video, save_adapter
from fe_adapter.cli import app as cli
from fe_adapter.demo.dataset import write_videos
from tests.faces import make_yunet, write_squares
from tests.videos import make_video

pytest.importorskip("timm", reason="timm is not installed")
FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.py"))}
ARGS = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY = ["--backbone-args", json.dumps(ARGS), "--weights", "none"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An adapter folder: causal, and clips of a second."""
    torch.manual_seed(0)
    config = FEAdapterConfig(bottleneck=4, causal=True, max_dilation=2)
    classifier = VideoClassifier.from_name(
        "timm:vit_small_patch14_dinov2", weights="none", backbone_args=ARGS, class_names=["sad", "happy"], num_frames=4,
        config=config,
    )  # fmt: skip
    for p in classifier.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    classifier.clip_seconds = 1.0
    folder = tmp_path_factory.mktemp("run") / "best"
    save_adapter(classifier, folder)
    return folder


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("backbone", ["timm:vit_small_patch14_dinov2", "timm:vit_small_patch16_dinov3"])
def test_frozen_dino(run, tmp_path, backbone):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    write_videos("videos", num_pairs=4, seed=0)
    said = run("frozen_dino.py", "videos", "--out", "run", "--backbone", backbone, "--epochs", 1, *TINY)
    assert re.search(r"UAR \d+\.\d%; the best epoch is in run/best", said)
    assert load_classifier("run/best").class_names == ("offset", "onset")


def test_several_adapters(run):
    said = run("several_adapters.py", *TINY).splitlines()
    assert [line.split()[0] for line in said] == ["default", "pain", "mixed"]
    alone, mixed = ast.literal_eval(said[0].partition(" ")[2]), json.loads(said[2].partition(" ")[2])
    assert list(alone.values()) == pytest.approx(mixed[0])
    assert load_classifier("adapters/pain").class_names == ("none", "some")


def test_stream(run, model):
    make_video(Path("clip.mp4"), 12)  # ten frames a second, of which four are looked at
    lines = run("stream.py", model, "clip.mp4").splitlines()
    assert cli.run(["predict", str(model), "clip.mp4", "--stream", "--out", "out"]) == 0
    with Path("out/clip.stream.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 5
    for line, row in zip(lines, rows, strict=True):
        seconds, name, share = re.fullmatch(r" *(\S+) s  (\w+) (\S+)%", line).groups()
        assert float(seconds) == pytest.approx(float(row["time"]), abs=0.01)
        assert float(share) == pytest.approx(100 * float(row[name]), abs=0.06)


def test_people_table(run, model):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    here = [(0, 0, 32, 32)]
    write_squares(Path("two.mp4"), [here + ([(64, 32, 32, 32)] if i < 15 else []) for i in range(30)])
    write_squares(Path("none.mp4"), [[]] * 12)
    found = ["--face-model", make_yunet(Path("yunet.onnx"), None), "--window", 1]
    said = run("people_table.py", model, "two.mp4", *found)
    assert said.split()[:5] == ["start", "end", "sad", "happy", "face_id"]
    table = pandas.read_csv("people.csv")
    assert set(table.face_id) == {0, 1}
    assert table[["sad", "happy"]].sum(axis=1).to_numpy() == pytest.approx(1)
    run("people_table.py", model, "none.mp4", *found, "--out", "none.csv")
    assert not pandas.read_csv("none.csv").success.any()


def test_onnx_file(run, model):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    make_video(Path("clip.mp4"), 12)
    said = ast.literal_eval(run("onnx_file.py", model, "clip.mp4"))
    expected = predict_video(load_classifier(model), "clip.mp4", window=2.0)  # all of it, as one clip
    assert said == pytest.approx(dict(zip(("sad", "happy"), expected.probabilities.tolist(), strict=True)), abs=1e-4)


def test_scripts_are_short_and_say_how_they_are_run():
    for name, text in SCRIPTS.items():
        assert len(text.splitlines()) < 40, name
        assert f"    python examples/{name}" in ast.get_docstring(ast.parse(text), clean=False), name
        assert f"def test_{Path(name).stem}(" in Path(__file__).read_text(), name
