"""What is trained, how fast, and by which optimizer."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.sharing.content import check_saveable
from fe_adapter.train.config import TrainConfig


class Schedule:
    """Learning rate by step: linear warm-up, then a cosine to zero."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int, clips_per_step: int) -> None:
        self.clips_per_step = clips_per_step
        self.peak = config.base_lr * clips_per_step / 256 if config.lr is None else config.lr
        self.total = config.max_epochs * steps_per_epoch
        self.warmup = min(config.warmup_epochs * steps_per_epoch, self.total / 10)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.peak * (1 + math.cos(math.pi * done)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases, norms and the dilation predictor (whose decay would pull every dilation to 1) are not decayed."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (others if p.dim() <= 1 or "dilation_proj" in name else decayed).append(p)
    if not decayed and not others:
        raise InputError("nothing in the model is trainable")
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def classifier_of(model: nn.Module) -> VideoClassifier:
    """The classifier that `fit` is to train, compiled or not.

    Raises:
        InputError: it is no classifier, or wrapped; what trains in it could not be saved; its adapters are frozen.
    """
    inner, kind = unwrapped(model), type(model).__name__
    if not isinstance(inner, VideoClassifier):
        raise InputError(f"fit trains a VideoClassifier, not a {kind}")
    if inner is not model and kind != "OptimizedModule":
        raise InputError(f"fit takes the model itself, not a {kind} of it: Accelerate spreads it over processes")
    check_saveable(inner)
    adapters = [p for adapter in get_adapters(inner) for p in adapter.parameters()]
    if adapters and not any(p.requires_grad for p in adapters):
        raise InputError(
            "the adapters are frozen, as peft freezes all that is not its own; set_adapter(model, name) lets them train"
        )
    return inner
