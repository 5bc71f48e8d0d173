"""The command line from end to end, and its one-line errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fe_adapter import load_classifier
from fe_adapter.cli import app as cli
from fe_adapter.data import EvalTransform, FrameSampler, open_dataset, read_frames
from fe_adapter.demo.dataset import draw_onset, write_video, write_videos
from fe_adapter.demo.run import ENTRIES
from fe_adapter.evaluate import evaluate
from fe_adapter.models import get_adapters
from fe_adapter.models.classifier import expected_frames
from fe_adapter.predict.jobs import output_stems
from fe_adapter.sharing.folder import find_model

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")

BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}']
FAST = ["--num-frames", "4", "--batch-size", "3", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three clips of each of two classes."""
    folder = tmp_path_factory.mktemp("data") / "videos"
    write_videos(folder, num_pairs=3, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--out", str(out)]) == 0
    return out


def fails(capsys, arguments, code=2):
    """The one line that a failing command leaves on stderr."""
    capsys.readouterr()
    assert cli.run([str(a) for a in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    return lines[0]


def test_train_leaves_a_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"settings.json", "log.jsonl", "checkpoint.safetensors", "best", "last"}
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert {"loss", "lr", "grad_norm", "ms"} <= set(records[0])
    assert {"train_loss", "uar", "war"} <= set(records[-1])
    settings = json.loads((trained / "settings.json").read_text())
    assert settings["num_frames"] == 4
    assert settings["precision"] == "auto"
    assert (settings["kernel_size"], settings["dilation"], settings["positions"]) == (3, "dynamic", "attn")


def test_eval_writes_metrics_and_prints_them(videos, trained, tmp_path, capsys):
    assert cli.run(["eval", str(trained), str(videos), "--out", str(tmp_path), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["num_clips"] == 6
    assert metrics["class_names"] == ["offset", "onset"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json", "predictions.csv", "confusion.csv", "confusion.png", "calibration.png", "risk_coverage.csv",
    }  # fmt: skip
    assert cli.run(["eval", str(trained), str(videos), "--split", "val"]) == 0
    assert "UAR" in capsys.readouterr().out
    assert (trained / "eval" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_predict_watches_a_stream(videos, tmp_path, capsys):
    """Frame by frame what the whole clip so far gives, at the rate of the clips of training."""
    run = tmp_path / "run"
    train = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--causal", "--max-dilation", "2"]
    assert cli.run([*train, "--out", str(run)]) == 0
    model = load_classifier(find_model(run))
    assert all(adapter.causal and adapter.max_dilation == 2 for adapter in get_adapters(model))
    frames = np.concatenate([draw_onset(np.random.default_rng(5))] * 2)  # 2 s
    write_video(tmp_path / "clip.mp4", frames)
    capsys.readouterr()
    command = ["predict", str(run), str(tmp_path / "clip.mp4"), "--stream", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--window", "1000", "--json"]) == 0
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert model.clip_seconds == pytest.approx(1)
    assert [line["time"] for line in lines] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])
    assert "latency: median" in output.err
    clip = EvalTransform(*expected_frames(model))(
        read_frames(tmp_path / "clip.mp4", range(0, len(frames), len(frames) // 8))
    )
    with torch.no_grad():
        for t, line in enumerate(lines):
            expected = (model(clip[None, : t + 1]) / model.temperature).softmax(-1)[0].tolist()
            assert list(line["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
            assert line["latency"] > 0
    with (tmp_path / "out" / "clip.stream.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time"]) for row in rows] == pytest.approx([line["time"] for line in lines])
    assert cli.run([*command, "--fps", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_predict_refuses_what_is_no_stream(trained, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", draw_onset(np.random.default_rng(5)))
    command = ["predict", trained, tmp_path / "clip.mp4", "--out", tmp_path / "out"]
    assert "later frames, which a stream does not have yet; train one with fe-adapter train --causal" in fails(
        capsys, [*command, "--stream"]
    )
    assert "--stream watches one VIDEO" in fails(capsys, [*command, tmp_path / "clip.mp4", "--stream"])
    for option, value in (("--step", "1"), ("--smooth", "1"), ("--columns", "openface"), ("--formats", "json")):
        assert f"leave {option} out" in fails(capsys, [*command, "--stream", option, value])
    assert "--fps is of --stream" in fails(capsys, [*command, "--fps", "1"])
    assert not (tmp_path / "out").exists()


def test_predict_covers_a_long_video(trained, tmp_path, capsys):
    frames = draw_onset(np.random.default_rng(5))
    write_video(tmp_path / "a" / "clip.mp4", np.concatenate([frames, frames[::-1], frames]))  # three clips long
    write_video(tmp_path / "b" / "clip.mp4", frames[:7])  # shorter than one
    files = [str(tmp_path / name / "clip.mp4") for name in ("a", "b")]
    out = tmp_path / "out"
    assert cli.run(["predict", str(trained), *files, "--out", str(out), "--json"]) == 0
    long, short = json.loads(capsys.readouterr().out)
    assert [w["start"] for w in long["windows"]] == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert [w["end"] for w in long["windows"]] == pytest.approx([1, 1.5, 2, 2.5, 3])
    assert len(short["windows"]) == 1
    for prediction in (long, short):
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
    assert sorted(path.name for path in out.iterdir()) == [
        f"clip{number}.{kind}" for number in ("-2", "") for kind in ("csv", "json", "png")
    ]
    assert json.loads((out / "clip.json").read_text()) == long
    rows = list(csv.DictReader((out / "clip.csv").read_text().splitlines()))
    assert [float(row["start"]) for row in rows] == [0, 0.5, 1, 1.5, 2]
    assert cli.run(["predict", str(trained), files[1], "--out", str(out), "--window", "0.1", "--step", "0.1"]) == 0
    assert "onset" in capsys.readouterr().out


def test_results_never_overwrite_each_other(tmp_path):
    assert output_stems(["x.mp4", "x.mov", "x-2.mp4", "x.mp4", "d/x.mp4"], tmp_path) == [
        tmp_path / name for name in ("x", "x-2", "x-2-2", "x-3", "d/x")
    ]


def test_a_finished_run_is_not_overwritten_but_resumed(videos, trained, capsys):
    arguments = ["train", videos, *BACKBONE, "--weights", "none", *FAST, "--out", trained]
    before = (trained / "checkpoint.safetensors").read_bytes()
    assert "already holds a training run; add --resume or choose another folder" in fails(capsys, arguments)
    assert cli.run([str(a) for a in [*arguments, "--resume"]]) == 0
    assert (trained / "checkpoint.safetensors").read_bytes() == before
    capsys.readouterr()
    assert cli.run([str(a) for a in [*arguments, "--resume", "--batch-size", "2"]]) == 2
    assert "is of a run with clips_per_step=3, not 2" in capsys.readouterr().err


def test_options_come_from_a_toml_file_and_the_command_line_wins(videos, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('num_frames = 2\nmax_epochs = 1\nbatch_size = 2\nrandaugment = false\ntracker = "none"\n')
    with file.open("a") as text:
        text.write('kernel_size = [1, 1, 1]\ndilation = 2\npositions = ["mlp"]\n')
    out = tmp_path / "run"
    arguments = ["train", videos, *BACKBONE, "--weights", "none", "--out", out, "--config", file, "--batch-size", "4"]
    assert cli.run([str(a) for a in arguments]) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["num_frames"], settings["batch_size"], settings["randaugment"]) == (2, 4, False)
    adapter = json.loads((out / "last" / "adapter_config.json").read_text())["adapter"]
    assert (adapter["kernel_size"], adapter["dilation"], adapter["positions"]) == ([1, 1, 1], 2, ["mlp"])
    file.write_text("frames = 2\n")
    assert "sets 'frames', which is no option" in fails(capsys, arguments)
    file.write_text("num_frames = \n")
    assert "is no TOML file" in fails(capsys, arguments)
    file.write_text("num_frames = true\n")
    assert f"{file}: " in (message := fails(capsys, arguments))
    assert "num_frames" in message.replace("-", "_")


def test_the_weights_of_the_backbone_may_move(videos, tmp_path, capsys):
    import timm

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, patch_size=24, embed_dim=24, depth=2, num_heads=2, num_classes=0
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    arguments = [*BACKBONE, "--weights", tmp_path / "vit.safetensors", *FAST, "--out", tmp_path / "run"]
    assert cli.run([str(a) for a in ["train", videos, *arguments]]) == 0
    (tmp_path / "vit.safetensors").rename(tmp_path / "moved.safetensors")
    predict = ["predict", tmp_path / "run", videos / "onset" / "0000.mp4", "--out", tmp_path / "out"]
    assert "and are not any more; pass weights" in fails(capsys, predict)
    assert not (tmp_path / "out").exists()
    assert cli.run([str(a) for a in [*predict, "--weights", tmp_path / "moved.safetensors"]]) == 0
    torch.nn.init.zeros_(vit.blocks[0].attn.qkv.weight)
    save_file(vit.state_dict(), tmp_path / "other.safetensors")
    assert "on another backbone, or on other weights of it" in fails(
        capsys, [*predict, "--weights", tmp_path / "other.safetensors"]
    )


BAD_TRAINING = {
    "no data": (["nowhere"], "nowhere: no such folder"),
    "unknown backbone": (["VIDEOS", "--backbone", "resnet"], "is none of timm:NAME"),
    "typo in backbone": (["VIDEOS", "--backbone", "timm:vit_tiny_patch16_225"], "close to it are vit_tiny_patch16_224"),
    "even kernel": (["VIDEOS", "--kernel-size", "4"], "has the even size 4"),
    "no dilation": (["VIDEOS", "--dilation", "0"], "dilation=0 is too small"),
    "bad dilations": (["VIDEOS", "--dilation", "1,x"], "dilation='1,x' is neither 'dynamic' nor"),
    "bad kernel": (["VIDEOS", "--kernel-size", "3,3"], "has 2 sizes; give K or (K, kh, kw)"),
    "bad dilation": (["VIDEOS", "--dilation", "1.5"], "dilation='1.5' is neither 'dynamic' nor a number"),
    "no bottleneck": (["VIDEOS", "--bottleneck", "0"], "bottleneck=0 is too small"),
    "no frames": (["VIDEOS", "--num-frames", "0"], "num_frames=0 is too small"),
    "bad number": (["VIDEOS", "--lr", "fast"], "Invalid value for '--lr'"),
    "negative rate": (["VIDEOS", "--lr", "-1"], "lr=-1.0 is not a positive number"),
    "bad position": (["VIDEOS", "--positions", "head"], "'head' is not one of 'attn', 'mlp'"),
    "bad sampling": (["VIDEOS", "--sampling", "random"], "'random' is not one of"),
    "bad arguments": (["VIDEOS", "--backbone-args", "{"], "is no JSON"),
    "bad precision": (["VIDEOS", "--precision", "int8"], "precision='int8' is not one of"),
    "no such weights": (["VIDEOS", "--weights", "none.safetensors"], "weights none.safetensors: no such file"),
    "unknown option": (["VIDEOS", "--frames", "8"], "No such option: --frames"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_use_is_one_line_and_leaves_nothing(case, videos, tmp_path, capsys):
    given, message = BAD_TRAINING[case]
    arguments = [videos if a == "VIDEOS" else a for a in given]
    defaults = [*BACKBONE, "--weights", "none"]
    line = fails(capsys, ["train", *defaults, *FAST, "--out", tmp_path / "run", *arguments])
    assert line.startswith("fe-adapter: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["xformers", "bf16+budget=0.3:0-1"])
def test_a_policy_that_needs_a_gpu_is_refused_before_all_else(policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["train", "nowhere", *BACKBONE, "--memory-policy", policy, "--out", tmp_path / "run"]
    assert " needs a GPU" in fails(capsys, arguments)
    assert not (tmp_path / "run").exists()


def test_bad_folders_and_files_are_named(videos, trained, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "file").write_text("")
    train = ["train", videos, *BACKBONE, "--weights", "none", *FAST, "--out"]
    out = tmp_path / "out"
    cases = [
        ([*train, tmp_path / "file" / "run"], "run: Not a directory"),
        (["predict", trained, tmp_path / "text.mp4", "--out", out], "text.mp4 is no video, or a damaged one"),
        (["predict", trained, tmp_path / "none.mp4", "--out", out], "none.mp4: no such file"),
        (["predict", tmp_path / "none", videos / "onset" / "0000.mp4", "--out", out], "none: no such folder"),
        (["predict", videos, videos / "onset" / "0000.mp4", "--out", out], "holds no trained model"),
        (
            ["predict", trained, videos / "onset" / "0000.mp4", "--window", "0", "--out", out],
            "windows and steps must be positive",
        ),
        (["predict", trained, videos / "onset" / "0000.mp4", "--device", "cuda:9", "--out", out], "--device cuda:9: "),
        (["eval", trained, videos.parent, "--out", out], "has the unknown class 'videos'"),
        (["eval", trained, videos, "--split", "test", "--out", out], "has no test split"),
        (["demo", "--out", trained], "holds something that is not the demo's"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, arguments)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[]", "is damaged: input should be an object"),
        ('{"sampling": 3}', "is damaged: sampling is 3: "),
        ('{"sampling": "all"}', "is damaged: sampling='all' is not one of"),
        ('{"stride": true}', "is damaged: stride is True: "),
        ('{"stride": 0}', "is damaged: stride=0 is too small"),
        ('{"val_fraction": NaN}', "is damaged: val_fraction"),
        ('{"sampling": ', "is no whole JSON file"),
        ("[" * 100_000, "is no whole JSON file"),
    ],
)
def test_damaged_settings_are_refused(settings, message, trained, videos, tmp_path, capsys):
    """They are read where a model does not know itself what its clips were, as those of before."""
    shutil.copytree(trained, tmp_path / "run")
    forget_clips(tmp_path / "run" / "best")
    (tmp_path / "run" / "settings.json").write_text(settings)
    assert f"settings.json {message}" in fails(capsys, ["eval", tmp_path / "run", videos])


def forget_clips(folder):
    content = json.loads((folder / "adapter_config.json").read_text())
    del content["classifier"]["clip_sampling"]
    (folder / "adapter_config.json").write_text(json.dumps(content))


def test_a_run_without_settings_is_tested_as_train_trains_by_default(trained, videos, tmp_path, caplog):
    shutil.copytree(trained, tmp_path / "run")
    forget_clips(tmp_path / "run" / "best")
    (tmp_path / "run" / "settings.json").write_text("{}")
    assert cli.run(["eval", str(tmp_path / "run"), str(videos)]) == 0
    assert not caplog.text
    (tmp_path / "run" / "settings.json").unlink()
    assert cli.run(["eval", str(tmp_path / "run" / "best"), str(videos), "--out", str(tmp_path / "out")]) == 0
    assert "best does not say which frames made its clips; taken are uniform ones" in caplog.text


def test_a_model_knows_what_its_clips_were_wherever_it_is(videos, tmp_path):
    """Sampling, stride and the held-out share of its training: not those of a default."""
    run, copy = tmp_path / "run", tmp_path / "elsewhere" / "model"
    options = ["--sampling", "stride", "--stride", "2", "--val-fraction", "0.7"]
    assert cli.run(["train", str(videos), *BACKBONE, "--weights", "none", *FAST, *options, "--out", str(run)]) == 0
    shutil.copytree(run / "best", copy)
    made = []
    for name, folder in (("run", run), ("best", run / "best"), ("copy", copy)):
        out = tmp_path / name
        assert cli.run(["eval", str(folder), str(videos), "--split", "val", "--out", str(out)]) == 0
        made.append((out / "predictions.csv").read_text())
    assert made[0] == made[1] == made[2]
    assert made[0].count("\n") == 1 + 2 * 2  # 0.7 of three videos a class is two
    model = load_classifier(copy)
    assert model.clip_sampling == {"sampling": "stride", "stride": 2, "val_fraction": 0.7}
    uniform = open_dataset(
        videos, "val", val_fraction=0.7, class_names=model.class_names, sampler=FrameSampler(model.num_frames),
        transform=EvalTransform(model.preprocessing.size),
    )  # fmt: skip
    rows = [
        ",".join(f"{p:.6f}" for p in row) for row in evaluate(model, uniform, description="").probabilities.tolist()
    ]
    assert not any(row in made[0] for row in rows)


def test_a_video_that_fails_loses_no_results_of_others(trained, videos, tmp_path, capsys):
    damaged = tmp_path / "damaged.mp4"
    content = bytearray((videos / "onset" / "0001.mp4").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    damaged.write_bytes(content)
    good = videos / "onset" / "0000.mp4"
    command = [str(a) for a in ["predict", trained, damaged, good, "--out", tmp_path / "out"]]
    assert cli.run(command) == 1
    said = capsys.readouterr()
    assert "damaged.mp4 is " in said.err
    assert said.err.splitlines()[-1] == f"fe-adapter: 1 of 2 videos could not be predicted: {damaged}"
    shown = "".join(line.split("│")[1].strip() for line in said.out.splitlines() if line.startswith("│"))
    assert shown == str(good)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"0000.json", "0000.csv", "0000.png"}


def test_a_loss_that_is_not_finite_ends_with_advice(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fe_adapter.train.losses.F.cross_entropy", lambda logits, *a, **k: logits.sum() * float("nan"))
    arguments = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--out", str(tmp_path / "run")]
    assert cli.run(arguments) == 1
    assert "the loss is nan at step 0" in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(videos, tmp_path, capsys, monkeypatch):
    from fe_adapter.train import recipe

    real = recipe._Run._batch

    def interrupted(run, *arguments):
        signal.raise_signal(signal.SIGINT)
        return real(run, *arguments)

    monkeypatch.setattr(recipe._Run, "_batch", interrupted)
    arguments = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--out", str(tmp_path / "run")]
    assert cli.run(arguments) == 130
    said = capsys.readouterr().err
    assert "--resume goes on from it" in said.replace("\n", " ")
    assert "fe-adapter: interrupted" in said
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    monkeypatch.undo()
    assert cli.run([*arguments, "--resume"]) == 0
    assert find_model(tmp_path / "run").name == "best"


def test_help_shows_examples_and_env_the_machine(capsys):
    for command in ("train", "eval", "predict", "demo"):
        assert cli.run([command, "--help"]) == 0
        assert f"fe-adapter {command}" in capsys.readouterr().out
    assert cli.run(["env"]) == 0
    assert f"torch: {torch.__version__.split('+')[0]}" in capsys.readouterr().out
    assert cli.run(["--version"]) == 0


def test_the_quick_demo_runs_through(tmp_path, capsys):
    assert cli.run(["demo", "--quick", "--compare", "--out", str(tmp_path / "demo")]) == 0
    rows = json.loads((tmp_path / "demo" / "results.json").read_text())["rows"]
    assert [row["uar"] for row in rows if row["averages_frames"]] == [0.5, 0.5]  # whatever they learned
    assert [row["name"] for row in rows] == [entry.name for entry in ENTRIES]
    assert [entry.is_extra for entry in ENTRIES] == [False, False, True, True, True, True, False]
    said = capsys.readouterr().err
    assert said.index("FE-Adapter, dynamic dilation: test UAR") < said.index("frozen + linear: test UAR")
    made = {path.name for path in (tmp_path / "demo" / "prediction").iterdir()}
    assert made == {f"appears_and_fades.{kind}" for kind in ("mp4", "json", "csv", "png")}
    assert (tmp_path / "demo" / "results.png").exists()


@pytest.mark.parametrize(
    "name", ["[b]a[/b] :smile:", "[/b]", "$x$ and $y$", "two\nlines", "日本 😀", b"caf\xe9"], ids=repr
)
def test_any_name_of_a_file_and_a_class_is_text(name, videos, trained, tmp_path, capsys, recwarn):
    stem = os.fsdecode(name).replace("/", "_")
    video = tmp_path / f"{stem}.mp4"
    shutil.copy(videos / "onset" / "0000.mp4", video)
    shutil.copytree(trained / "best", tmp_path / "model")
    content = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    content["classifier"]["class_names"] = [name if isinstance(name, str) else "other", "onset"]
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(content))
    assert cli.run(["predict", str(tmp_path / "model"), str(video), "--out", str(tmp_path / "out")]) == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".csv", ".png"}
    shown = "".join(capsys.readouterr().out.split())
    if name in ("[b]a[/b] :smile:", "[/b]", "$x$ and $y$"):
        assert name.replace(" ", "") in shown
    assert "out of whack" not in fails(capsys, ["predict", trained, tmp_path / stem / "none.mp4"])


def test_values_that_are_not_finite_are_refused_where_they_are_predicted(
    trained, videos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "torch.nn.Linear.forward", lambda self, x: x.new_full((*x.shape[:-1], self.out_features), float("nan"))
    )
    for command in (["predict", trained, videos / "onset" / "0000.mp4"], ["eval", trained, videos]):
        assert "logits are NaN or infinite" in fails(capsys, [*command, "--out", tmp_path / "out"])


def test_a_full_disk_is_a_failure_while_running(trained, videos, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = fails(capsys, ["predict", trained, videos / "onset" / "0000.mp4", "--out", tmp_path / "out"], code=1)
    assert "No space left on device" in message


def test_two_runs_into_one_folder_are_one_too_many(videos, tmp_path, capsys):
    arguments = ["train", videos, *BACKBONE, "--weights", "none", *FAST, "--out", tmp_path / "run"]
    script = "from fe_adapter.files import only_one; from pathlib import Path; import time\n"
    script += f"with only_one(Path({str(tmp_path / 'run')!r})): print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        assert "another process is writing to" in fails(capsys, arguments)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}
        other.kill()
    assert cli.run([str(a) for a in arguments]) == 0
    assert not (tmp_path / "run" / ".lock").exists()


def test_sigterm_leaves_a_checkpoint_to_resume_from(videos, tmp_path, monkeypatch, capsys):
    from fe_adapter.train import recipe

    real = recipe._Run._batch

    def terminated(run, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return real(run, *arguments)

    arguments = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(recipe._Run, "_batch", terminated)
    assert cli.run(arguments) == 143
    said = capsys.readouterr().err
    assert "is whole; the same command with --resume goes on" in said
    assert "fe-adapter: terminated" in said
    monkeypatch.setattr(recipe._Run, "_batch", real)
    assert cli.run([*arguments, "--resume"]) == 0
