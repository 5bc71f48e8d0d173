"""Train a video classifier: one recipe, resumable bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from fe_adapter.data.feed import Feed
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.data.sampling import derive_seed
from fe_adapter.errors import InputError, OutOfMemoryError, TrainingError
from fe_adapter.evaluate.calibration import fit_temperature
from fe_adapter.evaluate.run import check_classes, evaluate
from fe_adapter.files import make_folder, only_one
from fe_adapter.memory.measure import measure_peak_memory
from fe_adapter.memory.optimizers import make_optimizer
from fe_adapter.memory.plan import smaller_batches
from fe_adapter.memory.policies import check_device, moves_to_host, replace_memory_policy
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.sharing.folder import save_adapter
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.identity import MAY_CHANGE, OF_FILES, clip_sampling, faces_of, identity
from fe_adapter.train.log import TrainingLog
from fe_adapter.train.losses import Criterion
from fe_adapter.train.optimizers import Schedule, classifier_of, parameter_groups
from fe_adapter.train.state import CHECKPOINT, Progress, load_training_state, save_training_state
from fe_adapter.train.step import Late, Step
from fe_adapter.train.stop import StopSignal
from fe_adapter.train.trackers import check_tracker


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Args:
        folder: adapter folder to use: ``best`` by validation UAR, or ``last`` without a validation set.
        history: one entry an epoch: ``epoch``, ``train_loss`` and, with a validation set, ``uar``, ``war`` and the
            ``temperature`` fitted to it.
        num_steps: optimizer steps in all.
        ms_per_step: median time of the steps of this process; NaN if it made none.
    """

    folder: Path
    history: list[dict[str, float]]
    num_steps: int
    ms_per_step: float


def fit(
    model: VideoClassifier,
    train_set: ClipDataset,
    val_set: ClipDataset | None = None,
    config: TrainConfig | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    progress: bool = True,
    expected_peak: int | None = None,
) -> TrainResult:
    """Train what is trainable in ``model`` and leave the results in the folder ``out``.

    Accelerate drives device, precision, accumulation and processes. ``out`` holds ``log.jsonl``, a checkpoint every
    ``save_every`` steps and at the end of every epoch (one file, replaced as a whole), ``best/`` and ``last/``. On a
    CPU a resumed run has the same losses bit for bit as one that was never stopped: data order, augmentation and
    dropout are functions of the seed and the step.

    Args:
        model: moved to the device; its weights at return are those of the last step.
        train_set: a `VideoFolder` or `VideoCSV` with the training transforms.
        val_set: the same with the evaluation transforms; chooses ``best/``. None: there is only ``last/``.
        config: the recipe; None is the default one.
        out: folder, made if need be.
        resume: go on from the checkpoint in ``out``, if there is one.
        progress: show a progress bar.
        expected_peak: bytes that a step is expected to need (`plan_memory`); what the second step needs is measured
            and logged beside it.

    Raises:
        InputError: ``out`` holds a run and ``resume`` is off, or one with another config; the sets do not fit.
        TrainingError: the loss or a gradient is not finite.
        OutOfMemoryError: a step does not fit the device.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint of the last finished step written.
        Terminated: the same after SIGTERM.
    """
    with contextlib.ExitStack() as held:
        config = config or TrainConfig()
        return _fit(_Run(model, train_set, val_set, config, Path(out), resume, progress, expected_peak, held))


def _fit(run: _Run) -> TrainResult:
    try:
        with run.log:
            while run.position.epoch < run.config.max_epochs:
                run.train_epoch()
                run.validate()
            run.save_model("last")
    except RuntimeError as error:
        if run.world > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise TrainingError("another process of this run is gone; see its own error, then resume") from error
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # a CPU's words
            raise
        safe = f"the checkpoint in {run.out} is whole" if run.checkpoint.exists() else "nothing is saved yet"
        raise OutOfMemoryError(
            f"out of memory at step {run.position.step}; {safe}. {_memory_advice(run.config)}"
        ) from error
    finally:
        run.accelerator.unwrap_model(run.prepared, keep_fp32_wrapper=False)  # gives the model its own forward back
    return TrainResult(
        folder=run.out / ("last" if run.val_set is None else "best"),
        history=run.position.history,
        num_steps=run.position.step,
        ms_per_step=statistics.median(run.step_ms) if run.step_ms else math.nan,
    )


class _Run:
    """The parts of one run, and what happens in an epoch."""

    def __init__(
        self,
        model: VideoClassifier,
        train_set: ClipDataset,
        val_set: ClipDataset | None,
        config: TrainConfig,
        out: Path,
        resume: bool,
        progress: bool,
        expected_peak: int | None,
        held: contextlib.ExitStack,
    ) -> None:
        check_device(config.memory_policy)
        check_tracker(config.tracker)
        given, model = model, classifier_of(model)
        if len(train_set) == 0:
            raise InputError("the training set holds no clips")
        for dataset in (train_set, val_set):
            if dataset is not None:
                check_classes(model, dataset)
        self.model, self.train_set, self.val_set, self.config, self.out = model, train_set, val_set, config, out
        self.criterion = Criterion(config, train_set)
        self.expected_peak = expected_peak
        if config.memory_policy is not None:
            replace_memory_policy(model, config.memory_policy)
        model.clip_seconds = train_set.clip_seconds  # what predict_video slides over a longer video
        model.clip_sampling, model.faces = clip_sampling(train_set), faces_of(train_set)
        make_folder(out)
        self.accelerator = _accelerator(config, out)
        if self.accelerator.is_main_process:
            held.enter_context(only_one(out))
        world = self.world = self.accelerator.num_processes
        self.num_batches = math.ceil(len(train_set) / (config.batch_size * world))
        steps_per_epoch = math.ceil(self.num_batches / config.accumulate)
        self.schedule = Schedule(config, steps_per_epoch, clips_per_step=config.batch_size * config.accumulate * world)
        if config.compile and given is model:
            given = torch.compile(model)  # type: ignore[assignment]  # a module as well
        groups = parameter_groups(model, config.weight_decay)
        optimizer = make_optimizer(config.optimizer, groups, self.schedule.peak, self.accelerator.device)
        self.prepared, self.optimizer = self.accelerator.prepare(given, optimizer)
        self.optimizer.zero_grad()  # of what the model was used for before
        self.trainable = [p for p in model.parameters() if p.requires_grad]

        self.settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in MAY_CHANGE}
        self.settings |= identity(model, train_set) | {"clips_per_step": self.schedule.clips_per_step}
        self.position = Progress()
        self.checkpoint = out / CHECKPOINT
        if self.checkpoint.exists():
            if not resume:
                raise InputError(f"{out} already holds a training run; resume it or choose another folder")
            left_open = OF_FILES if config.without_lost_files else ()
            asked = {key: value for key, value in self.settings.items() if key not in left_open}
            self.position = load_training_state(self.checkpoint, model, self.optimizer, self.accelerator.scaler, asked)
            if val_set is not None and any("uar" not in entry for entry in self.position.history):
                raise InputError(f"{self.checkpoint} is of a run without a validation set; resume it without one")
        if self.position.history:
            model.temperature = self.position.history[-1].get("temperature", 1.0)
        self.position.count_batches_of(config.batch_size * world, self.num_batches)
        self.position.batch = min(self.position.batch, self.num_batches)  # there are fewer where files are gone
        described = self.settings | dataclasses.asdict(config)
        self.log = TrainingLog(out, self.accelerator, self.position, config, described, self.num_batches, progress)
        self.step_ms: list[float] = []
        self.step_loss, self.late = 0.0, Late()
        buffers = list(model.buffers())
        self.step = Step(self._forward_backward, self.trainable, buffers, config.capture, self._obstacle())
        self.step.is_paused = expected_peak is not None  # what a step needs is measured first: of a graph it cannot be
        self.feed = Feed(
            train_set,
            config.batch_size,
            device=self.accelerator.device,
            sampler=config.sampler,
            seed=config.seed,
            num_workers=config.num_workers,
            shard=(self.accelerator.process_index, world),  # which share batches out one by one
        )
        held.callback(self.feed.close)

    def _obstacle(self) -> str | None:
        """Why a step cannot be a CUDA graph, as far as can be known now."""
        if self.accelerator.device.type != "cuda":
            return "a CUDA graph needs a GPU"
        if torch.version.hip is not None:
            return "graphs of AMD cards have not been tried"
        if self.world > 1:
            return "several processes exchange gradients while they are made"
        if moves_to_host(self.model):
            return "memory policy offload waits for the host"
        return None

    def train_epoch(self) -> None:
        """Every batch of the epoch that the position has not passed yet."""
        position = self.position
        if position.batch == self.num_batches:
            return
        self.prepared.train()
        start, waited = time.perf_counter(), 0.0
        with StopSignal() as stop:
            for batch in self.feed.epoch(position.epoch, start_batch=position.batch * self.world):
                waited += self.feed.waited
                share, ends_step = self._share_of_step(len(batch["label"])), self._ends_step()
                run_batch = self._measured_batch if self._wants_peak() else self._batch
                values = run_batch(batch, share)
                position.batch += 1
                receive = functools.partial(self._receive, dataclasses.replace(position), share)
                if not ends_step:
                    self.late.read(values, receive)
                    continue
                self.step_ms.append(1e3 * (time.perf_counter() - start))
                spent = self.schedule(position.step), self.step_ms[-1], 1e3 * waited
                self.late.read(values, functools.partial(receive, spent=spent))
                start, waited = time.perf_counter(), 0.0
                position.step += 1
                if position.step % self.config.save_every == 0 or position.batch == self.num_batches or stop.requested:
                    self.save()
                if stop.requested:
                    stop.stop()

    def _receive(
        self, at: Progress, share: float, values: list[float], spent: tuple[float, float, float] | None = None
    ) -> None:
        """What the device made of a batch, a step late: its loss and, if a step followed, the gradient's norm.

        ``at`` is where the run stood; ``spent``: a step's learning rate, its ms, and those that it waited for data.
        """
        self._check_finite("loss", values[0], at)
        self.position.loss_sum += values[0]
        self.step_loss += values[0] * share
        if spent is None:
            return
        if self.accelerator.scaler is None:  # which skips such steps itself
            self._check_finite("gradient", values[1], at)
        lr, ms, waited_ms = spent
        self.log.step(at, self.step_loss, lr, values[1], ms, waited_ms)
        self.step_loss = 0.0

    def _share_of_step(self, num_clips: int) -> float:
        """The part that a batch of ``num_clips`` has in the clips of its step, which is short where an epoch ends."""
        first = self.position.batch - self.position.batch % self.config.accumulate
        clips = min(self.config.accumulate, self.num_batches - first) * self.config.batch_size
        if self.world == 1:  # of several, each gets whole batches
            clips = min(clips, len(self.train_set) - first * self.config.batch_size)
        return num_clips / clips

    def _ends_step(self) -> bool:
        """Whether a step of the optimizer follows the present batch."""
        batch = self.position.batch + 1
        return batch % self.config.accumulate == 0 or batch == self.num_batches

    def _wants_peak(self) -> bool:
        """Whether this is the last batch of the second step: all that there can be is there."""
        return self.expected_peak is not None and len(self.step_ms) == 1 and self._ends_step()

    def _measured_batch(self, batch: dict[str, Any], share: float) -> list[torch.Tensor]:
        """Run `_batch`, and put the peak of its memory into the log."""
        result: list[list[torch.Tensor]] = []
        there = [*self.model.parameters(), *self.model.buffers(), batch["video"]]
        there += [p.grad for p in self.trainable if p.grad is not None]
        there += [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        peak = sum(t.nbytes for t in there) + measure_peak_memory(lambda: result.append(self._batch(batch, share)))
        assert self.expected_peak is not None
        self.log.memory(self.position, self.expected_peak, peak)
        self.expected_peak = None
        self.step.is_paused = False
        return result[0]

    def _batch(self, batch: dict[str, Any], share: float) -> list[torch.Tensor]:
        """Loss of one batch, its gradients added; and the gradient's norm if a step of the optimizer followed."""
        position = self.position
        turn = position.batch * self.world + self.accelerator.process_index
        torch.manual_seed(derive_seed(self.config.seed, position.epoch, turn))  # of dropout
        self.accelerator.sync_gradients = self._ends_step()
        with contextlib.nullcontext() if self._ends_step() else self.accelerator.no_sync(self.prepared):
            video, target = self.criterion.prepare(batch)
            loss = self.step(video, target, share * self.config.accumulate)
            values = [self.accelerator.reduce(loss, "mean")]
            if self._ends_step():
                values.append(self.accelerator.clip_grad_norm_(self.trainable, self.config.clip_grad_norm))
                for group in self.optimizer.param_groups:
                    group["lr"] = self.schedule(position.step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=not self.step.is_capturing)  # a graph's gradients stay where they are
        return values

    def _forward_backward(
        self, video: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float
    ) -> torch.Tensor:
        """The part of a batch that `Step` may capture."""
        loss = self.criterion(self.prepared(video).float(), target)
        with torch.autograd.set_multithreading_enabled(False):  # one device: another thread would but have to be woken
            self.accelerator.backward(loss * weight)  # which divides it by the batches of a step
        return loss.detach()

    def _check_finite(self, name: str, value: float, at: Progress) -> None:
        if not math.isfinite(value):
            safe = (
                f"the checkpoint in {self.out} is from before" if self.checkpoint.exists() else "nothing is saved yet"
            )
            advice = "or use precision bf16" if self.config.precision == "fp16" else "or look for NaN in the weights"
            raise TrainingError(
                f"the {name} is {value} at step {at.step}; {safe}. Lower the learning rate (its peak is "
                f"{self.schedule.peak:.2g}), warm up longer, {advice}"
            )

    def validate(self) -> None:
        """End the epoch: metrics on the validation set, ``best/`` where they are the best so far, a checkpoint."""
        position = self.position
        entry = {"epoch": position.epoch, "train_loss": position.loss_sum / self.num_batches}
        if self.val_set is not None:
            self.model.temperature = 1.0
            evaluation = evaluate(
                self.model,
                self.val_set,
                batch_size=self.config.batch_size,
                num_workers=self.config.num_workers,
                precision=self.config.precision,
                description="",
            )
            metrics = evaluation.metrics
            self.model.temperature = fit_temperature(evaluation.probabilities, evaluation.labels)
            if metrics.uar > max((past["uar"] for past in position.history), default=-1):
                self.save_model("best")
            entry |= {"uar": metrics.uar, "war": metrics.war, "temperature": self.model.temperature}
        self.log.epoch(position, entry)
        position.next_epoch(entry)
        self.save()

    def save(self) -> None:
        """Replace the checkpoint, once what was trained before it is known to be finite."""
        self.late.flush()
        save_training_state(
            self.checkpoint, self.model, self.optimizer, self.accelerator.scaler, self.position, self.settings
        )

    def save_model(self, name: str) -> None:
        """Write the adapter folder ``name``."""
        save_adapter(self.model, self.out / name)


def _accelerator(config: TrainConfig, out: Path) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import AutocastKwargs
    except ImportError:
        raise InputError("training needs accelerate; pip install 'fe-adapter[train]'") from None
    AcceleratorState._reset_state()  # or the first run of a process would fix the precision of all later ones
    return Accelerator(
        mixed_precision=config.precision,
        cpu=not torch.accelerator.is_available(),  # or several processes on CPUs would not find each other
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker,
        project_dir=out,
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)] if torch.cuda.is_available() else [],  # kept in no graph
    )


def _memory_advice(config: TrainConfig) -> str:
    smaller = next(iter(smaller_batches(config.batch_size)), 1)
    accumulate = config.accumulate * config.batch_size // smaller
    return (
        "In the order of least cost, with resume: memory_policy='recompute_input+full' (--memory-policy), "
        f"batch_size={smaller} with accumulate={accumulate} (the same step), precision='bf16'; "
        "or a new run of fewer frames. fe-adapter plan and train --memory say beforehand what fits"
    )
