"""Training: that it learns, that it resumes to the same bits, and that nothing is lost when it stops."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fe_adapter import FEAdapterConfig, VideoClassifier, load_classifier
from fe_adapter.data import EvalTransform, FrameSampler, TrainTransform, VideoFolder
from fe_adapter.demo.dataset import write_videos
from fe_adapter.errors import InputError, TrainingError
from fe_adapter.evaluate.run import evaluate
from fe_adapter.train import recipe
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.recipe import fit
from fe_adapter.train.state import Progress, load_training_state, save_training_state
from tests.videos import make_video

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")

NAME = "timm:vit_tiny_patch16_224"
ARGS = {"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}
RECIPE = TrainConfig(max_epochs=2, batch_size=2, lr=1e-2, warmup_epochs=0, tracker=None, save_every=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six clips of each of two classes."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, num_pairs=6, seed=0)
    return folder


def model(**options) -> VideoClassifier:
    torch.manual_seed(0)
    options = {"config": FEAdapterConfig(bottleneck=8), "head_dropout": 0.3, **options}
    return VideoClassifier.from_name(
        NAME, weights="none", backbone_args=ARGS, class_names=["onset", "offset"], num_frames=4, **options
    )


def train_set(videos, **options) -> VideoFolder:
    options = {"transform": TrainTransform((48, 48), randaugment=False), "is_training": True, **options}
    options = {"sampler": FrameSampler(4), "in_memory": True, **options}
    return VideoFolder(videos, class_names=["onset", "offset"], **options)


def val_set(videos) -> VideoFolder:
    return train_set(videos, transform=EvalTransform((48, 48)), is_training=False)


def losses(out: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def weights(classifier: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}


def test_it_learns_and_changes_the_adapters_and_the_head_only(tmp_path):
    for i in range(6):  # dark clips and bright ones
        make_video(tmp_path / "videos" / "onset" / f"{i}.mp4", num_frames=4 + i % 2)
        make_video(tmp_path / "videos" / "offset" / f"{i}.mp4", num_frames=28 + i % 2)
    classifier = model(head_dropout=0.0)
    before = {name: p.clone() for name, p in classifier.named_parameters()}
    data = val_set(tmp_path / "videos")
    recipe = TrainConfig(max_epochs=12, batch_size=4, lr=1e-2, label_smoothing=0.0, tracker=None)
    result = fit(classifier, data, data, recipe, out=tmp_path / "run", progress=False)
    assert result.history[-1]["train_loss"] < 0.2 * result.history[0]["train_loss"]
    assert result.history[-1]["uar"] == 1
    assert result.num_steps == 12 * 3
    changed = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(weights(classifier))
    best = load_classifier(result.folder)
    assert evaluate(best, data, description="").metrics.uar == 1
    assert best.clip_seconds == data.clip_seconds


class StoppedError(Exception):
    """Stands for whatever ends a process at once."""


def stop_after(monkeypatch, num_batches: int) -> None:
    """Let the process die at the start of a later batch."""
    real, done = recipe._Run._batch, []

    def batch(run, *args):
        if len(done) == num_batches:
            raise StoppedError
        done.append(None)
        return real(run, *args)

    monkeypatch.setattr(recipe._Run, "_batch", batch)


@pytest.mark.parametrize(
    ("options", "num_batches"),
    [
        ({}, 4),
        ({"accumulate": 2}, 4),
        ({"accumulate": 2}, 5),  # between two batches of one step: the step is made again
        ({"sampler": "balanced", "save_every": 3}, 5),
        ({"precision": "bf16"}, 7),  # in the second epoch
        ({"optimizer": "sgd"}, 4),
        ({"optimizer": "adamw8bit"}, 4),
    ],
)
def test_a_resumed_run_has_the_same_losses_and_weights_bit_for_bit(videos, tmp_path, monkeypatch, options, num_batches):
    if "adamw8bit" in options.values():
        pytest.importorskip("bitsandbytes")
    # wide enough that bitsandbytes keeps eight bits of it: from 4096 elements on
    config = FEAdapterConfig(bottleneck=192 if "adamw8bit" in options.values() else 8)
    recipe = TrainConfig(**{**vars(RECIPE), **options})
    whole = model(config=config)
    fit(whole, train_set(videos), None, recipe, out=tmp_path / "whole", progress=False)

    with monkeypatch.context() as patch:
        stop_after(patch, num_batches)
        with pytest.raises(StoppedError):
            fit(model(config=config), train_set(videos), None, recipe, out=tmp_path / "stopped", progress=False)
    torch.manual_seed(99)  # whatever a new process starts from
    resumed = model(config=config)
    fit(resumed, train_set(videos), None, recipe, out=tmp_path / "stopped", resume=True, progress=False)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    expected = weights(whole)
    assert all(torch.equal(p, expected[name]) for name, p in weights(resumed).items())


def test_backward_runs_in_the_thread_that_calls_it(videos, tmp_path):
    classifier, asked = model(), []
    classifier.head.weight.register_hook(lambda _: asked.append(torch._C._is_multithreading_enabled()))
    fit(classifier, train_set(videos), None, dataclasses.replace(RECIPE, max_epochs=1), out=tmp_path, progress=False)
    assert asked
    assert not any(asked)


def test_accumulated_batches_are_the_same_step(videos, tmp_path):
    """Seven clips: the last step has three of them, in batches of two and one."""
    data, trained, told = val_set(videos), {}, {}
    data.paths, data.labels = data.paths[2:9], data.labels[2:9]
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        recipe = dataclasses.replace(RECIPE, batch_size=batch_size, accumulate=accumulate, optimizer="sgd")
        classifier = model(head_dropout=0.0)
        out = tmp_path / f"of {batch_size}"
        fit(classifier, data, None, recipe, out=out, progress=False)
        trained[batch_size], told[batch_size] = weights(classifier), losses(out)
    for batch_size in (2, 1):
        assert [step for step, _ in told[batch_size]] == [step for step, _ in told[4]]
        for (_, loss), (_, expected) in zip(told[batch_size], told[4], strict=True):
            assert loss == pytest.approx(expected, rel=1e-5)  # fp32, sums of a few hundred terms
        for name, p in trained[batch_size].items():
            torch.testing.assert_close(p, trained[4][name], rtol=1e-4, atol=1e-6)


def test_the_seed_alone_decides(videos, tmp_path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = TrainConfig(**{**vars(RECIPE), "seed": seed, "max_epochs": 1})
        fit(model(), train_set(videos, seed=seed), None, recipe, out=tmp_path / name, progress=False)
        runs[name] = losses(tmp_path / name)
    assert runs["a"] == runs["b"] != runs["c"]


def test_gradients_of_before_are_no_part_of_it(videos, tmp_path):
    used = model()
    for p in used.parameters():
        p.grad = torch.ones_like(p)
    for name, classifier in (("fresh", model()), ("used", used)):
        recipe = dataclasses.replace(RECIPE, max_epochs=1)
        fit(classifier, train_set(videos), None, recipe, out=tmp_path / name, progress=False)
    assert losses(tmp_path / "fresh") == losses(tmp_path / "used")


def test_workers_change_nothing(videos, tmp_path):
    for name, num_workers in (("alone", 0), ("workers", 2)):
        recipe = TrainConfig(**{**vars(RECIPE), "num_workers": num_workers, "max_epochs": 1})
        fit(model(), train_set(videos), None, recipe, out=tmp_path / name, progress=False)
    assert losses(tmp_path / "alone") == losses(tmp_path / "workers")


def test_the_log_says_what_share_of_the_time_was_waited_for_data(videos, tmp_path):
    class Slow(VideoFolder):
        """Half a second to decode a batch of two, where a step takes some milliseconds."""

        def __getitem__(self, index):
            time.sleep(0.1)
            return super().__getitem__(index)

    slow = Slow(videos, class_names=["onset", "offset"], sampler=FrameSampler(4), transform=EvalTransform((48, 48)))
    slow.paths, slow.labels = slow.paths[4:8], slow.labels[4:8]
    recipe = dataclasses.replace(RECIPE, max_epochs=1, accumulate=2)
    fit(model(), slow, None, recipe, out=tmp_path / "slow", progress=False)
    fit(model(), train_set(videos), None, RECIPE, out=tmp_path / "fast", progress=False)
    epoch_shares = []
    for name in ("slow", "fast"):
        records = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert all(0 < record["data_wait"] < 1 for record in records)  # of steps, and of epochs
        assert records[-1].keys() >= {"train_loss", "data_wait"}
        epoch_shares.append(records[-1]["data_wait"])
        if name == "slow":
            assert records[0]["data_wait"] * records[0]["ms"] > 400  # both batches of the step
    assert epoch_shares[0] > epoch_shares[1]


SCRIPT = """
import dataclasses, sys, time
from tests.train import test_recipe as t
from fe_adapter.train import recipe
real = recipe._Run._batch
def slow(run, *arguments):
    time.sleep(0.05)
    return real(run, *arguments)
recipe._Run._batch = slow
if __name__ == "__main__":
    config = dataclasses.replace(t.RECIPE, num_workers=int(sys.argv[3]), max_epochs=int(sys.argv[4]))
    t.fit(t.model(), t.train_set(sys.argv[1]), None, config, out=sys.argv[2], progress=False)
"""


def started(folder: Path, videos: Path, *, num_workers: int, max_epochs: int) -> subprocess.Popen:
    """A process that trains into ``folder / "run"``, in a session of its own, once its first checkpoint is there."""
    root, script = Path(__file__).parents[2], folder / "script.py"  # workers import it again, so it must be a file
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, videos, folder / "run", str(num_workers), str(max_epochs)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "run" / "checkpoint.safetensors").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "num_workers"), [(signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGKILL, 0)], ids=str
)
def test_a_stopped_process_leaves_a_checkpoint_to_resume_from(videos, tmp_path, number, num_workers):
    process, out = started(tmp_path, videos, num_workers=num_workers, max_epochs=RECIPE.max_epochs), tmp_path / "run"
    os.killpg(process.pid, number)  # as a terminal does: to the workers, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, "it ran to its end before the signal came"
    assert number == signal.SIGKILL or b"KeyboardInterrupt" in errors
    fit(model(), train_set(videos), None, RECIPE, out=out, resume=True, progress=False)
    fit(model(), train_set(videos), None, RECIPE, out=tmp_path / "whole", progress=False)
    assert losses(out) == losses(tmp_path / "whole")


def test_damaged_checkpoints_are_refused_in_one_line(videos, tmp_path):
    fit(model(), train_set(videos), None, RECIPE, out=tmp_path, progress=False)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with safe_open(checkpoint, framework="pt") as file:
        metadata = json.loads(file.metadata()["fe_adapter"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = next(name for name in tensors if name.endswith("exp_avg"))
    cases = [
        ({"position": None}, {}),
        ({"position": {**metadata["position"], "loops": 1}}, {}),
        ({"format": None}, {}),
        ({"settings": []}, {}),
        ({}, {"optimizer.none.exp_avg": torch.zeros(1)}),
        ({}, {state: torch.zeros(1)}),
    ]
    for change, more in cases:
        save_file({**tensors, **more}, checkpoint, {"fe_adapter": json.dumps({**metadata, **change})})
        with pytest.raises(InputError, match="is not a whole training checkpoint") as caught:
            fit(model(), train_set(videos), None, RECIPE, out=tmp_path, resume=True, progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_process(videos, tmp_path):
    process = started(tmp_path, videos, num_workers=2, max_epochs=50)

    def left() -> list[str]:
        stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
        return [stat for stat in stats if int(stat[3]) == process.pid and stat[0] != "Z"]  # of its session

    assert len(left()) > 1  # the process, and at least its workers
    process.kill()
    process.wait()  # not for the end of its stderr, which workers would keep open
    process.stderr.close()
    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_it_with_advice(videos, tmp_path, what, monkeypatch):
    classifier = model()
    recipe = TrainConfig(**{**vars(RECIPE), "max_epochs": 1})
    fit(classifier, train_set(videos), None, recipe, out=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    if what == "loss":
        monkeypatch.setattr("torch.nn.functional.cross_entropy", lambda logits, *a, **k: logits.sum() * float("nan"))
    else:
        classifier.head.weight.register_hook(lambda g: g * float("inf"))
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(TrainingError, match=rf"the {what} is (nan|inf) at step 0; .*Lower the learning rate"):
        fit(classifier, train_set(videos), None, recipe, out=tmp_path, progress=False)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert before


def test_a_full_disk_leaves_the_previous_checkpoint(videos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            fit(model(), train_set(videos), None, RECIPE, out=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 1:  # the log is shortened first
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*checkpoint\.safetensors: No space left on device"):
            fit(model(), train_set(videos), None, RECIPE, out=tmp_path, resume=True, progress=False)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*"))
    fit(model(), train_set(videos), None, RECIPE, out=tmp_path, resume=True, progress=False)


def test_what_cannot_be_resumed_is_refused(videos, tmp_path):
    fit(model(), train_set(videos), None, RECIPE, out=tmp_path, progress=False)
    checkpoint = tmp_path / "checkpoint.safetensors"
    cases = [
        ({}, False, model(), "already holds a training run"),
        ({"batch_size": 3}, True, model(), "is of a run with clips_per_step=2, not 3"),
        ({"lr": 1e-3}, True, model(), r"is of a run with lr=0\.01, not 0\.001"),
        ({}, True, model(config=FEAdapterConfig(bottleneck=4)), "is of a run with bottleneck=8, not 4"),
        ({}, True, model(head_dropout=0.0), r"is of a run with head_dropout=0\.3, not 0\.0"),
    ]
    for options, resume, classifier, message in cases:
        recipe = TrainConfig(**{**vars(RECIPE), **options})
        with pytest.raises(InputError, match=message):
            fit(classifier, train_set(videos), None, recipe, out=tmp_path, resume=resume, progress=False)
    others = {
        "sampler": (train_set(videos, sampler=FrameSampler(4, "dense")), "is of a run with frames=.*uniform.*dense"),
        "transform": (train_set(videos, transform=EvalTransform((48, 48))), "is of a run with transform=Train"),
    }
    for data, message in others.values():
        with pytest.raises(InputError, match=message):
            fit(model(), data, None, RECIPE, out=tmp_path, resume=True, progress=False)
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    with pytest.raises(InputError, match="is not a whole training checkpoint"):
        fit(model(), train_set(videos), None, RECIPE, out=tmp_path, resume=True, progress=False)
    checkpoint.write_text("no checkpoint")
    with pytest.raises(InputError, match="is not a whole training checkpoint"):
        fit(model(), train_set(videos), None, RECIPE, out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"save_every": 7, "num_workers": 1}),
        ({"precision": "bf16"}, {"memory_policy": "bf16+full"}),  # as `--memory` may pick
    ],
)
def test_what_may_change_on_resume(videos, tmp_path, monkeypatch, before, after):
    recipe = TrainConfig(**{**vars(RECIPE), **before})
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(StoppedError):
            fit(model(), train_set(videos), None, recipe, out=tmp_path, progress=False)
    recipe = TrainConfig(**{**vars(RECIPE), **after})
    assert fit(model(), train_set(videos), None, recipe, out=tmp_path, resume=True, progress=False).num_steps == 12


def test_fp16_may_come_and_go_on_resume(tmp_path):
    """Its loss scale is in the checkpoints of such runs alone; the first steps find one anew where there is none."""
    layer, path = nn.Linear(2, 2), tmp_path / "checkpoint.safetensors"
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before, after = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0))
    for saved, loaded, scale in ((before, None, 2), (None, after, 2), (before, after, 8)):
        save_training_state(path, layer, optimizer, saved, Progress(step=5), {})
        assert load_training_state(path, layer, optimizer, loaded, {}).step == 5
        assert after.get_scale() == scale


@pytest.mark.parametrize("policy", ["xformers", "full:0+budget=0.3:1"])
def test_a_policy_that_needs_a_gpu_leaves_nothing(videos, tmp_path, monkeypatch, policy):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = TrainConfig(**{**vars(RECIPE), "memory_policy": policy})
    with pytest.raises(InputError, match="needs a GPU"):
        fit(model(), train_set(videos), None, recipe, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_to_is_refused(videos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the folder .*file"):
        fit(model(), train_set(videos), None, RECIPE, out=tmp_path / "file" / "run", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0 is too small"),
        ({"lr": 0.0}, r"lr=0\.0 is not a positive number"),
        ({"base_lr": float("nan")}, "base_lr=nan is not a positive number"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0 is not a number of at least 0"),
        ({"label_smoothing": 1.0}, "is outside"),
        ({"precision": "int8"}, "'int8' is not one of"),
        ({"compile": True, "memory_policy": "bf16+budget=0.3"}, r"'bf16\+budget=0\.3' is not for compile"),
        ({"sampler": "random"}, "'random' is not one of"),
        ({"tracker": "paper"}, "'paper' is not one of"),
        ({"num_workers": -1}, "num_workers=-1 is too small"),
        ({"seed": 2**32}, "seed=4294967296 is too large"),
    ],
)
def test_bad_recipes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


def test_the_schedule_warms_up_and_ends_at_zero():
    schedule = recipe.Schedule(TrainConfig(max_epochs=20, warmup_epochs=1), steps_per_epoch=10, clips_per_step=128)
    rates = [schedule(step) for step in range(200)]
    assert max(rates) == pytest.approx(schedule.peak) == pytest.approx(5e-4)
    assert rates.index(max(rates)) == 10
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3 * schedule.peak


def test_what_is_not_decayed():
    classifier = model(config=FEAdapterConfig(bottleneck=8, dilation="dynamic"))
    decayed, others = (group["params"] for group in recipe.parameter_groups(classifier, 0.1))
    names = {id(p): name for name, p in classifier.named_parameters()}
    assert all(p.dim() > 1 and "dilation" not in names[id(p)] for p in decayed)
    assert {names[id(p)].rpartition(".")[2] for p in others} == {"bias", "weight"}
    assert len(decayed) + len(others) == len(weights(classifier))


def test_tensorboard_gets_the_curves(videos, tmp_path):
    pytest.importorskip("tensorboard")
    recipe = TrainConfig(**{**vars(RECIPE), "max_epochs": 1, "tracker": "tensorboard"})
    fit(model(), train_set(videos), None, recipe, out=tmp_path, progress=False)
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("which", ["train", "val"])
def test_data_of_other_classes_is_refused_at_the_start(videos, tmp_path, which):
    good = val_set(videos)
    other = VideoFolder(videos, sampler=FrameSampler(4))
    sets = (other, None) if which == "train" else (good, other)
    with pytest.raises(InputError, match="the data has the classes offset, onset, but the model was trained on onset"):
        fit(model(), *sets, RECIPE, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="tracker='wandb' needs wandb; pip install wandb"):
        fit(model(), train_set(videos), None, TrainConfig(tracker="wandb"), out=tmp_path / "run", progress=False)


def test_evaluation_refuses_other_classes_and_keeps_the_order(videos):
    classifier = model().eval()
    with pytest.raises(InputError, match="the data has the classes offset, onset, but the model was trained on onset"):
        evaluate(classifier, VideoFolder(videos, sampler=FrameSampler(4)), description="")
    data = val_set(videos)
    evaluation = evaluate(classifier.train(), data, batch_size=5, description="")
    assert classifier.training
    assert list(evaluation.paths) == data.paths
    assert evaluation.labels.tolist() == data.labels
    alone = classifier.eval()(data[7]["video"][None]).softmax(-1)[0]
    torch.testing.assert_close(evaluation.probabilities[7], alone)


def damaged(path: Path) -> Path:
    """A video whose index is whole, and whose middle is not."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    return path


def test_a_video_damaged_inside_is_left_out_of_the_whole_run(videos, tmp_path, caplog):
    """As if it had never been there: in every epoch, and after a resume."""
    shutil.copytree(videos, tmp_path / "all")
    bad = damaged(tmp_path / "all" / "onset" / "0001.mp4")
    assert len(train_set(tmp_path / "all")) == 12  # its index and its first frame are whole
    data = train_set(tmp_path / "all", on_error="skip")
    assert str(bad) not in data.paths
    assert len(data) == 11
    assert len(data.skipped) == 1
    assert f"left out: {bad} is " in caplog.text
    fit(model(), data, None, RECIPE, out=tmp_path / "skipped", progress=False)
    bad.unlink()
    fit(model(), train_set(tmp_path / "all"), None, RECIPE, out=tmp_path / "without", progress=False)
    assert losses(tmp_path / "skipped") == losses(tmp_path / "without")


def test_a_run_goes_on_without_files_that_are_gone_where_that_is_asked_for(videos, tmp_path, monkeypatch):
    shutil.copytree(videos, tmp_path / "all")
    real, done = recipe._Run._batch, []

    def interrupted(run, *arguments):
        if len(done) == 8:  # of the second epoch's six
            raise KeyboardInterrupt
        done.append(1)
        return real(run, *arguments)

    monkeypatch.setattr(recipe._Run, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), train_set(tmp_path / "all"), None, RECIPE, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(recipe._Run, "_batch", real)
    for i in range(3):
        (tmp_path / "all" / "onset" / f"{i:04d}.mp4").unlink()
    fewer = train_set(tmp_path / "all")
    with pytest.raises(InputError, match=r"num_clips=12, not 9; .*\(--without-lost-files goes on without"):
        fit(model(), fewer, None, RECIPE, out=tmp_path / "run", resume=True, progress=False)
    lenient = dataclasses.replace(RECIPE, without_lost_files=True)
    result = fit(model(), fewer, None, lenient, out=tmp_path / "run", resume=True, progress=False)
    assert len(result.history) == 2
    assert result.num_steps == 6 + 5
