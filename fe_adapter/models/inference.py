"""Class probabilities of clips, batch after batch, without waiting for the device in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_choice
from fe_adapter.errors import InputError

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
Key = TypeVar("Key")


def classify(
    model: Any, batches: Iterable[tuple[Key, Tensor]], precision: str = "auto"
) -> Iterator[tuple[Key, Tensor]]:
    """What comes with each batch, and its class probabilities ``(B, C)``, float32 on the CPU: the softmax of the logits
    over the model's temperature.

    Those of a batch are read once the next one is under way, so that a GPU always has work.

    Args:
        model: a `VideoClassifier`, or one that is compiled or wrapped.
        batches: pairs of anything and a video that is on the model's device.
        precision: of the autocast: "no", "bf16", "fp16", or "auto": bf16 on a GPU that has it, unless the model itself
            is in bf16 or the caller has chosen an autocast.

    Raises:
        InputError: no such precision; a logit is NaN or infinite.
    """
    check_choice("precision", precision, ("auto", *PRECISIONS))
    return _classified(model, batches, precision)


def _classified(model: Any, batches: Iterable[tuple[Key, Tensor]], precision: str) -> Iterator[tuple[Key, Tensor]]:
    run = classifying(model, precision)
    before: tuple[Key, OnItsWay] | None = None
    for key, video in batches:
        rows = run(model, video)
        if before is not None:
            yield before[0], finite(before[1].read())
        before = key, rows
    if before is not None:
        yield before[0], finite(before[1].read())


def classifying(model: Any, precision: str = "auto") -> Callable[[Callable[[Tensor], Tensor], Tensor], OnItsWay]:
    """``run(call, video)``: class probabilities out of the logits ``call(video)``, under way to the CPU; see `finite`.

    ``call`` is ``model``, or gives its logits in another way; precision and temperature are those of `classify`. It
    runs in evaluation mode, whatever mode ``model`` is in otherwise.
    """
    check_choice("precision", precision, ("auto", *PRECISIONS))
    autocast = _autocast(model, precision)
    inner: Any = unwrapped(model)

    def run(call: Callable[[Tensor], Tensor], video: Tensor) -> OnItsWay:
        with torch.no_grad(), autocast(), _evaluating(model):
            logits = call(video).float()
            is_finite = logits.isfinite().all(-1, keepdim=True)
            temperature = inner.temperatures() if hasattr(inner, "temperatures") else 1.0
            return OnItsWay((logits / temperature).softmax(-1).masked_fill(~is_finite, torch.nan))

    return run


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context no module of ``model`` is in training mode, such as `fit` leaves it in."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class OnItsWay:
    """A tensor that is being copied to the CPU, beside whatever the device is given to do meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy, self._arrival = tensor.to("cpu", non_blocking=True), None  # from a GPU into pinned memory
        if tensor.device.type != "cpu":
            self._arrival = torch.Event(tensor.device)
            self._arrival.record()

    def read(self) -> Tensor:
        """It, once it is there."""
        if self._arrival is not None and not self._arrival.query():
            self._arrival.synchronize()
        return self._copy


def chosen_precision(precision: str, device: torch.device, is_in_bf16: bool) -> str:
    """The precision meant; "auto" is bf16 autocast where a GPU has it, but for a model in bf16 itself."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if has_bf16 and not is_in_bf16 else "no"


def _autocast(model: Any, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    device = next(model.parameters()).device
    is_in_bf16 = any(p.dtype == torch.bfloat16 for p in model.parameters())
    chosen = chosen_precision(precision, device, is_in_bf16)
    if precision == "auto" and (chosen == "no" or torch.is_autocast_enabled(device.type)):
        return contextlib.nullcontext
    return partial(torch.autocast, device.type, PRECISIONS[chosen], enabled=chosen != "no")


def finite(rows: Tensor) -> Tensor:
    """``rows``, none of which came of a logit that is NaN or infinite.

    Raises:
        InputError: one did.
    """
    if rows.isnan().any():
        raise InputError(
            "the model's logits are NaN or infinite; its weights, or the precision it runs in, are not fit"
        )
    return rows
