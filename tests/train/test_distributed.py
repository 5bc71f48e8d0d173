"""Several processes on CPUs (gloo): the losses of one, files written once, and what happens when one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fe_adapter.cli import app as cli
from fe_adapter.demo.dataset import write_videos
from fe_adapter.models.adaptation import trainable_parameters
from fe_adapter.train.recipe import CHECKPOINT
from tests.cli.test_commands import BACKBONE
from tests.train.distributed_worker import batch, classifier, one_step

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[2]
RECIPE = ["--weights", "none", "--num-frames", "4", "--no-randaugment", "--tracker", "none", "--head-dropout", "0",
          "--val-fraction", "0.43", "--max-epochs", "2", "--memory-policy", "full"]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight clips to train on, and six to validate: three batches, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("data") / "videos"
    write_videos(folder, num_pairs=7, seed=0)
    return folder


@pytest.fixture(scope="module")
def alone(videos, tmp_path_factory):
    """The log of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert cli.run(["train", str(videos), *BACKBONE, *RECIPE, "--batch-size", "4", "--out", str(out)]) == 0
    return out


def launch(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(ROOT / "tests" / "train" / "distributed_worker.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def records(run: Path, key: str) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def test_two_processes_have_the_losses_of_one(videos, alone, tmp_path):
    out = tmp_path / "run"
    done = launch("train", "train", videos, *BACKBONE, *RECIPE, "--batch-size", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("clips to train on") == 1  # one process speaks
    assert records(out, "loss") == pytest.approx(records(alone, "loss"), rel=1e-5)
    assert records(out, "grad_norm") == pytest.approx(records(alone, "grad_norm"), rel=1e-3)
    assert records(out, "uar") == records(alone, "uar")  # every clip counted once
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}


def test_a_killed_process_ends_the_job_and_any_number_goes_on(videos, alone, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", videos, *BACKBONE, *RECIPE, "--save-every", "1", "--out", out]
    dead = launch("killed", *arguments, "--batch-size", "2")
    assert dead.returncode != 0
    assert "rank      : 1" in dead.stderr  # the launcher says which process it was and what killed it
    assert "SIGKILL" in dead.stderr
    assert "[rank0]: Traceback" not in dead.stderr  # the other one, if it has the time to, says it in a line
    assert (out / CHECKPOINT).exists()
    assert cli.run([str(a) for a in [*arguments, "--batch-size", "4", "--resume"]]) == 0  # one process, the same step
    assert records(out, "loss") == pytest.approx(records(alone, "loss"), rel=1e-5)


def test_sharded_parameters_train_and_are_written_whole(tmp_path):
    done = launch("sharded", tmp_path)
    assert done.returncode == 0, done.stderr
    result = torch.load(tmp_path / "losses.pt", weights_only=True)
    model = classifier()
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    losses = [one_step(model, optimizer, *batch(step)) for step in range(6)]
    assert result["losses"] == pytest.approx(losses, rel=1e-4)
    assert result["resumed"] == pytest.approx(losses[3:], rel=1e-4)
