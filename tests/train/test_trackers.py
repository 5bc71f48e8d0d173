"""What trackers are told: names, the config, and that a resumed run is the same one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys

import pytest

from fe_adapter import TrainConfig, fit
from fe_adapter.errors import InputError
from fe_adapter.train.trackers import WANDB_ID_FILE, check_tracker
from tests.train.test_recipe import RECIPE, model, train_set, val_set, videos  # noqa: F401

# Notes what it is told in calls.jsonl of the folder that it was asked to write to
STAND_IN = """
import json, pathlib

class Run:
    def __init__(self, options):
        self.file = pathlib.Path(options["dir"]) / "calls.jsonl"
        self.note("init", options)
    def note(self, kind, value):
        with self.file.open("a") as file:
            file.write(json.dumps([kind, value]) + "\\n")
    def log(self, values, step=None):
        self.note("log", {**values, "step": step})
    def finish(self):
        self.note("finish", None)
    def update(self, values, allow_val_change=False):
        self.note("config", values)

config = None

def init(**options):
    global config
    if options["project"] == "locked":
        raise RuntimeError("no API key;\\nuse wandb login")
    config = Run(options)
    return config
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tracking = importlib.import_module("accelerate.tracking")  # it looked for wandb when it was imported
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    yield
    sys.modules.pop("wandb", None)


def run(videos, out, validate=False, resume=False, **options):  # noqa: F811
    config = dataclasses.replace(RECIPE, **options)
    sets = train_set(videos), val_set(videos) if validate else None
    return fit(model(), *sets, config, out=out, resume=resume, progress=False)


def calls(out, kind):
    lines = (json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines())
    return [value for name, value in lines if name == kind]


def stop_at(monkeypatch, step):
    """The next run ends by Ctrl-C before the optimizer step of this number."""
    from fe_adapter.train.optimizers import Schedule

    def interrupted(self, at, original=Schedule.__call__):
        if at == step:
            raise KeyboardInterrupt
        return original(self, at)

    monkeypatch.setattr(Schedule, "__call__", interrupted)


def interrupt_and_resume(videos, out, monkeypatch, step, **options):  # noqa: F811
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run(videos, out, **{"save_every": 2, **options})
    return run(videos, out, resume=True, **{"save_every": 2, **options})


def test_wandb_is_told_project_name_and_config(wandb, videos, tmp_path):  # noqa: F811
    out = tmp_path / "my run"
    run(videos, out, max_epochs=1, tracker="wandb")
    (options,) = calls(out, "init")
    assert options == {
        "project": "fe-adapter",
        "name": "my run",
        "id": (out / WANDB_ID_FILE).read_text().strip(),
        "resume": "allow",
        "dir": str(out),
    }
    (config,) = calls(out, "config")
    assert config["lr"] == RECIPE.lr
    assert config["max_epochs"] == 1
    assert config["model"]["class_names"] == ["onset", "offset"]
    assert config["model"]["adapter"]["bottleneck"] == 8
    assert [values["step"] for values in calls(out, "log")] == [0, 1, 2, 3, 4, 5, 5]  # six steps, the epoch's end
    assert calls(out, "finish") == [None]


def test_a_resumed_run_is_the_same_one_under_another_name_if_asked(wandb, videos, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(videos, tmp_path / "run", tracker="wandb", project="faces", run_name="first")
    run(videos, tmp_path / "run", resume=True, tracker="wandb", project="faces", run_name="second")
    first, second = calls(tmp_path / "run", "init")
    assert first["project"] == second["project"] == "faces"
    assert first["id"] == second["id"]
    assert (first["name"], second["name"]) == ("first", "second")


def test_another_run_is_another_one(wandb, videos, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        stop_at(patch, 0)  # nothing is saved yet: what follows in the folder begins anew
        with pytest.raises(KeyboardInterrupt):
            run(videos, tmp_path / "run", max_epochs=1, tracker="wandb")
    run(videos, tmp_path / "run", max_epochs=1, tracker="wandb")
    first, second = calls(tmp_path / "run", "init")
    assert first["id"] != second["id"]


def test_wandb_that_does_not_start_is_one_line(wandb, videos, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"^tracker='wandb' does not start: no API key; use wandb login$"):
        run(videos, tmp_path / "run", tracker="wandb", project="locked")


def test_a_damaged_id_is_refused(wandb, videos, tmp_path):  # noqa: F811
    run(videos, tmp_path / "run", max_epochs=1, tracker="wandb")
    (tmp_path / "run" / WANDB_ID_FILE).write_bytes(b"\xff/..")
    with pytest.raises(InputError, match="holds no id of a W&B run"):
        run(videos, tmp_path / "run", max_epochs=1, resume=True, tracker="wandb")


def test_resumed_tensorboard_curves_have_every_step_once(videos, tmp_path, monkeypatch):  # noqa: F811
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    interrupt_and_resume(videos, out, monkeypatch, 9, tracker="tensorboard", validate=True)
    assert [path.name for path in (out / "tensorboard").iterdir() if path.is_dir()] == []
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(12))
    assert [event.step for event in events.Scalars("epoch/train_loss")] == [5, 11]
    shown = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(shown)["model"]["class_names"] == ["onset", "offset"]


def test_a_missing_tracker_is_refused_before_anything_is_written(videos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("W&B is installed")
    with pytest.raises(InputError, match="needs wandb; pip install wandb"):
        run(videos, tmp_path / "run", tracker="wandb")
    assert not (tmp_path / "run").exists()
    (tmp_path / "wandb").mkdir()  # what W&B leaves where it ran
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="needs wandb; pip install wandb"):
        check_tracker("wandb")


@pytest.mark.parametrize(
    "options", [{"project": ""}, {"project": "a/b"}, {"project": "x" * 129}, {"run_name": ""}, {"run_name": "a\nb"}]
)
def test_names_that_wandb_does_not_take_are_refused(options):
    with pytest.raises(InputError, match="is no name for W&B"):
        TrainConfig(**options)
