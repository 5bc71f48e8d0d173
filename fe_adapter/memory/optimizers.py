"""The optimizers that training offers, and the bytes that each needs beside the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fe_adapter.checks import check_choice
from fe_adapter.libraries import import_quietly, require

OPTIMIZERS = ("adamw", "sgd", "adamw8bit")
_MOMENTUM = 0.9
# of bitsandbytes: elements of a state that share a scale, and of a parameter below which its state stays in fp32
_BLOCK, _SMALLEST = 256, 4096


def check_optimizer(name: Any) -> None:
    """Raise `InputError` for a name that is none, or whose library is not installed."""
    check_choice("optimizer", name, OPTIMIZERS)
    if name == "adamw8bit":
        require("bitsandbytes", "optimizer='adamw8bit'", "quantize")


def make_optimizer(name: str, groups: list[dict[str, Any]], lr: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; SGD with a momentum of 0.9; or AdamW whose moments have eight bits, by bitsandbytes.

    On a GPU PyTorch's fused forms: two launches a step, and no wait for the device with a loss scale.
    """
    fused = True if device.type == "cuda" else None
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, fused=fused)
    if name == "adamw8bit":
        optimizer: torch.optim.Optimizer = import_quietly("bitsandbytes.optim").AdamW8bit(groups, lr=lr)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def state_bytes(name: str, parameters: Iterable[nn.Parameter]) -> int:
    """What the optimizer keeps from step to step."""
    return sum(_state_bytes(name, p) for p in parameters)


def step_bytes(name: str, parameters: Iterable[nn.Parameter], device: str) -> int:
    """What a step of the optimizer allocates for a moment: for one parameter at a time; a GPU's fused kernels none."""
    sizes = [p.nbytes for p in parameters]
    if device == "cuda":
        return 0
    return {"adamw": 2, "sgd": 1, "adamw8bit": 0}[name] * max(sizes)


def _state_bytes(name: str, p: nn.Parameter) -> int:
    if name == "sgd":
        return p.nbytes
    if name == "adamw" or p.numel() < _SMALLEST:
        return 2 * p.nbytes
    return 2 * (p.numel() + 4 * -(-p.numel() // _BLOCK))
