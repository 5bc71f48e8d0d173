"""What a training run says: a progress bar, ``log.jsonl``, and a tracker."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, cannot_write
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.state import Progress
from fe_adapter.train.trackers import start_tracker

_log = logging.getLogger("fe_adapter")


class Record(BaseModel):
    """What is read again of a line in ``log.jsonl``; the end of an epoch has a training loss."""

    model_config = ConfigDict(strict=True)

    step: int
    epoch: int
    train_loss: float | None = None


class TrainingLog:
    """Writes on the main process only. A resumed run drops the lines of steps that it makes again."""

    def __init__(
        self,
        out: Path,
        accelerator: Any,
        position: Progress,
        config: TrainConfig,
        settings: dict[str, Any],
        num_batches: int,
        progress: bool,
    ) -> None:
        self._out, self._config, self._settings = out, config, settings
        self._path, self._accelerator, self._main = out / "log.jsonl", accelerator, accelerator.is_main_process
        self._start, self._max_epochs, self._num_batches = position, config.max_epochs, num_batches
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (progress and self._main),
        )
        self._ms = self._waited_ms = 0.0  # of the epoch so far

    def __enter__(self) -> TrainingLog:
        position = self._start
        start_tracker(self._accelerator, self._config, self._out, position.step, self._settings)
        self._file: TextIO | None = None
        if self._main:
            _drop_lines_after(self._path, position.step, position.epoch)
            self._file = self._path.open("a")
        self._bar.start()
        self._task = self._bar.add_task(
            "",
            total=self._max_epochs * self._num_batches,
            completed=position.epoch * self._num_batches + position.batch,
            epoch=min(position.epoch + 1, self._max_epochs),
            epochs=self._max_epochs,
            status="",
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._file is not None:
            with contextlib.suppress(OSError):  # every line is flushed; a full disk has been reported there
                self._file.close()
        self._accelerator.end_training()

    def step(self, position: Progress, loss: float, lr: float, grad_norm: float, ms: float, waited_ms: float) -> None:
        """An optimizer step: its loss, learning rate, gradient norm, time in ms, and how much of it was spent waiting
        for data, of which the log gets the share."""
        self._ms, self._waited_ms = self._ms + ms, self._waited_ms + waited_ms
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "ms": ms, "data_wait": waited_ms / ms}
        self._write({"step": position.step, "epoch": position.epoch, **values})
        self._accelerator.log({f"train/{name}": value for name, value in values.items()}, step=position.step)
        self._bar.update(
            self._task,
            completed=position.epoch * self._num_batches + position.batch,
            epoch=position.epoch + 1,
            status=f"loss {loss:.3f}  lr {lr:.1e}  waited for data {self._waited_ms / self._ms:.0%}",
        )

    def memory(self, position: Progress, predicted: int, actual: int) -> None:
        """The peak of a step, in bytes, as predicted and as measured."""
        self._write({"step": position.step, "epoch": position.epoch, "predicted_peak": predicted, "peak": actual})
        if not self._bar.disable:
            off = actual / predicted - 1
            self._bar.console.print(
                f"a step's peak: {actual / 2**20:,.0f} MiB, {predicted / 2**20:,.0f} predicted ({off:+.1%})"
            )

    def epoch(self, position: Progress, entry: dict[str, float]) -> None:
        """The end of an epoch; ``entry`` holds its training loss and validation metrics."""
        waited = {"data_wait": self._waited_ms / self._ms} if self._ms else {}  # none after a resume at its end
        self._ms = self._waited_ms = 0.0
        self._write({"step": position.step, **entry, **waited})
        tracked = {f"epoch/{name}": value for name, value in entry.items() if name != "epoch"}
        self._accelerator.log(tracked, step=max(0, position.step - 1))  # the epoch's last, which a resumed run keeps
        shown = "  ".join(
            f"{name.upper()} {value:.1%}" if name in ("uar", "war") else f"{name} {value:.3f}"
            for name, value in entry.items()
            if name != "epoch"
        )
        shown += "".join(f"  waited for data {share:.0%}" for share in waited.values())
        self._bar.console.print(f"epoch {position.epoch + 1}: {shown}") if not self._bar.disable else None

    def _write(self, record: dict[str, float]) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            except OSError as error:
                raise cannot_write(self._path, error) from error


def _drop_lines_after(path: Path, step: int, epoch: int) -> None:
    """Keep the lines of the steps before ``step`` and of the epochs before ``epoch``; a torn last line goes too.

    So does any other line that is no record, as a machine that lost its power leaves: it is no reason to lose the run.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    kept, damaged = [], 0
    for i, line in enumerate(lines):
        try:
            record = Record.model_validate_json(line)
        except ValidationError:
            damaged += i < len(lines) - 1
            continue
        if record.epoch < epoch if record.train_loss is not None else record.step < step:
            kept.append(line + b"\n")
    if damaged:
        _log.warning("%s: %d damaged lines are left out", path, damaged)
    with atomic_write(path) as file:
        file.write(b"".join(kept))
