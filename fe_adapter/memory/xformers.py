"""What xFormers is used for: attention of frozen blocks, and its solver for what a checkpoint keeps. Both need a GPU.

Attention is that of timm's and transformers' models. PyTorch's own fused attention keeps as much; xFormers' kernels are
another choice of speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones import hf_vit, timm_vit
from fe_adapter.errors import InputError
from fe_adapter.libraries import import_quietly, require
from fe_adapter.models.forwards import override_forward, restore_forward

NAME = "fe_adapter_xformers"  # in transformers' registry of attention functions


def check(vit: nn.Module) -> None:
    """Raise `InputError` where `use` could not: xFormers is missing, or no attention of ``vit`` can be exchanged."""
    _memory_efficient_attention()
    if not timm_vit.attention_modules(vit) and not hf_vit.has_attention_registry(vit):
        raise InputError(
            f"memory policy 'xformers' is for timm's and transformers' attention, not {type(vit).__name__}"
        )


def use(vit: nn.Module) -> None:
    """Let the attention modules of ``vit`` call xFormers."""
    undo(vit)
    for module in timm_vit.attention_modules(vit):
        override_forward(module, _timm_forward)
    if hf_vit.has_attention_registry(vit):
        hf_vit.exchange_attention(vit, NAME, _attention)


def undo(vit: nn.Module) -> None:
    """Give the attention modules back what they called before."""
    for module in timm_vit.attention_modules(vit):
        restore_forward(module, _timm_forward)
    if hf_vit.has_attention_registry(vit):
        hf_vit.restore_attention(vit, NAME)


def check_solver() -> None:
    """Raise `InputError` where `solve` could not: xFormers or SciPy is missing."""
    _solver()
    require("scipy", "memory policy 'budget'", "xformers")


def solve(run: Callable[[Tensor], Any], x: Tensor, share: float) -> Callable:
    """Which operators of ``run(x)`` a checkpoint should keep the results of, and which to run again.

    xFormers times each operator and weighs it, and solves for the least time within ``share`` of all bytes.

    Raises:
        InputError: it would have to measure on a CPU, or while a model is compiled.
    """
    _refuse_measuring(x)
    with torch.random.fork_rng():
        policy: Callable = _solver()(run, x, memory_budget=share)
        return policy


def _refuse_measuring(x: Tensor) -> None:
    if not x.is_cuda or torch.compiler.is_compiling():
        raise InputError(
            "memory policy 'budget' times the operators of a block on a GPU: it is not for a CPU, "
            "nor to be planned, nor for torch.compile"
        )


def _refuse_cpu(x: Tensor) -> None:
    if x.device.type == "cpu":  # xFormers' own words are a page
        raise InputError("memory policy 'xformers' needs a GPU; what it was given is on a CPU")


def _timm_forward(module: nn.Module, own: Callable, x: Tensor, **masks: Any) -> Tensor:
    if any(mask is not None and mask is not False for mask in masks.values()):
        return own(module, x, **masks)
    return timm_vit.attention_forward(module, x, _attention)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, scale: float | None) -> Tensor:
    _refuse_cpu(q)
    try:
        return _memory_efficient_attention()(q, k, v, attn_bias=bias, p=dropout, scale=scale)
    except NotImplementedError:  # whose words are a page
        raise InputError(
            f"memory policy 'xformers' has no kernel here for heads of {q.shape[-1]} in {q.dtype}; use another policy"
        ) from None


def _memory_efficient_attention() -> Any:
    return _imported("xformers.ops", "memory_efficient_attention", "xformers")


def _solver() -> Any:
    return _imported("xformers.checkpoint", "get_optimal_checkpoint_policy", "budget")


def _imported(module: str, name: str, policy: str) -> Any:
    try:
        return getattr(import_quietly(module), name)
    except ImportError:
        raise InputError(f"memory policy {policy!r} needs xFormers; pip install 'fe-adapter[xformers]'") from None
