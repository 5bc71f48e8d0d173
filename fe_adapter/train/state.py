"""The checkpoint of a training run: one safetensors file, replaced as a whole.

Tensors: ``model.NAME`` for what is trained, ``optimizer.NAME.KEY`` for the optimizer's state. Metadata: the position,
the settings of the run and the loss scale. Random states are not in it: data order, augmentation and dropout are
functions of the seed and the position.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from fe_adapter.backbones.backbone import plain_name
from fe_adapter.distributed import full_tensor, is_first_process, like
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, check_as, not_finite, read_tensors

CHECKPOINT = "checkpoint.safetensors"  # in the folder of a run
FORMAT = 1
OF_OWN_SHAPE = ("step", "qmap1", "qmap2", "absmax1", "absmax2")  # of an optimizer's state, not of the parameter's shape
Count = Annotated[int, Field(ge=0, lt=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclasses.dataclass
class Progress:
    """Where a run stands: ``batch`` batches of epoch ``epoch`` are done, and ``step`` optimizer steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # over the batches of this epoch
    clips_per_batch: int = 0  # over all processes
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def count_batches_of(self, clips_per_batch: int, num_batches: int) -> None:
        """Go on with batches of another size, of which an epoch has ``num_batches``, from the same clip on."""
        if self.clips_per_batch not in (0, clips_per_batch):
            batch = min(self.batch * self.clips_per_batch // clips_per_batch, num_batches)
            self.loss_sum *= batch / max(1, self.batch)
            self.batch = batch
        self.clips_per_batch = clips_per_batch

    def next_epoch(self, entry: dict[str, float]) -> None:
        """The epoch is done; ``entry`` is its line in the history."""
        self.history.append(entry)
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0


class Part(BaseModel):
    """A part of the metadata: fields of just the types that are written, finite numbers, nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class EpochPart(Part):
    """A line of the history; the metrics are those on the validation set, where there is one."""

    epoch: Count
    train_loss: float
    uar: Share = 0.0
    war: Share = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


class PositionPart(Part):
    """A `Progress`."""

    epoch: Count
    batch: Count
    step: Count
    loss_sum: float
    clips_per_batch: Count
    history: list[EpochPart]

    @model_validator(mode="after")
    def _has_its_history(self) -> PositionPart:
        if [entry.epoch for entry in self.history] != list(range(min(self.epoch, len(self.history) + 1))):
            raise ValueError(f"the history is not that of {self.epoch} epochs")
        if len({frozenset(entry.model_fields_set) for entry in self.history}) > 1:
            raise ValueError("the history has metrics of some epochs only")
        return self


class Metadata(Part):
    """What a checkpoint says beside its tensors."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    position: PositionPart
    settings: dict[str, Any]
    scaler: dict[str, float] | None


def save_training_state(
    path: Path, model: nn.Module, optimizer: Any, scaler: Any, position: Progress, settings: dict[str, Any]
) -> None:
    """Write the checkpoint; whenever the process dies, the previous or the new one is there, whole.

    In a distributed run every process calls it, since parameters may be sharded, and the first one writes.
    """
    names = _trainable(model)
    tensors = {f"model.{name}": p.detach() for name, p in names.items()}
    for name, p in names.items():
        for key, value in optimizer.state.get(p, {}).items():
            value = torch.as_tensor(value)  # bitsandbytes counts steps in an integer
            # and all its parameters share one map of eight bits to values, which safetensors refuses to write
            tensors[f"optimizer.{name}.{key}"] = value.clone() if key in OF_OWN_SHAPE else value
    metadata = {
        "format": FORMAT,
        "position": dataclasses.asdict(position),
        "settings": settings,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    whole = {name: full_tensor(t).cpu().contiguous() for name, t in tensors.items()}
    if not is_first_process():
        return
    content = to_bytes(whole, {"fe_adapter": json.dumps(metadata)})
    with atomic_write(path) as file:
        file.write(content)


def load_training_state(
    path: Path, model: nn.Module, optimizer: Any, scaler: Any, settings: dict[str, Any]
) -> Progress:
    """Put the checkpoint's weights and states in place; returns its position.

    Raises:
        InputError: the file is damaged, newer than this release, or of a run with other settings or another model.
    """
    metadata, tensors = read_metadata(path), read_tensors(path)
    position = Progress(**metadata.position.model_dump(exclude_unset=True))
    states = {name: t for name, t in tensors.items() if name.startswith("optimizer.")}
    for key, (old, new) in _differences(metadata.settings, settings).items():
        raise InputError(
            f"{path} is of a run with {key}={old}, not {new}; resume with the same settings or choose another folder"
            + (" (--without-lost-files goes on without videos that are gone)" if key in ("num_clips", "files") else "")
        )
    if infinite := not_finite(tensors):
        raise InputError(f"{path} holds NaN or infinite values ({infinite[0]}); remove it to start again")
    names = _trainable(model)
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    shapes = {name: p.shape for name, p in names.items()}
    if {name: t.shape for name, t in saved.items()} != shapes:
        raise InputError(f"{path} is of another model: its trained parameters are not those of this one")
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    # in one order: processes that shard a tensor do it together
    parts = {name: name.removeprefix("optimizer.").rpartition(".") for name in sorted(states)}
    for name, (parameter, _, key) in parts.items():
        has_shape = key not in OF_OWN_SHAPE
        if parameter not in names or (has_shape and states[name].shape != names[parameter].shape):
            raise InputError(f"{path} is not a whole training checkpoint ({name}); remove it to start again")
    with torch.no_grad():
        for name, p in names.items():
            p.copy_(like(saved[name], p))
    for name, (parameter, _, key) in parts.items():
        p, tensor = names[parameter], states[name]
        if key == "step":  # on the host, as optimizers keep it; those that are fused, beside the parameter
            counted = tensor.to(p.device) if is_fused else tensor
            optimizer.state[p][key] = counted if tensor.is_floating_point() else tensor.item()
        else:
            optimizer.state[p][key] = tensor.to(p.device) if key in OF_OWN_SHAPE else like(tensor, p)
    if scaler is not None and metadata.scaler:
        scaler.load_state_dict(metadata.scaler)
    return position


def read_metadata(path: Path) -> Metadata:
    """What the checkpoint says beside its tensors, which are not read.

    Raises:
        InputError: the file is damaged, or newer than this release.
    """
    is_wrong = "is not a whole training checkpoint"
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["fe_adapter"])
    except (SafetensorError, KeyError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} {is_wrong} ({error}); remove it to start again") from None
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is int and version > FORMAT:
        raise InputError(f"{path} was written by a newer fe-adapter; update this one")
    try:
        return check_as(Metadata, content, path, is_wrong)
    except InputError as error:
        raise InputError(f"{error}; remove it to start again") from None


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not the same in both, by the innermost name."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found |= _differences(before, value)
        elif before != value:
            found[key] = before, value
    return found


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
