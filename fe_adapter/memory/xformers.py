"""What xFormers is used for: attention of frozen blocks, and its solver for what a checkpoint keeps. Both need a GPU.

Attention is that of timm's and transformers' models. PyTorch's own fused attention keeps as much; xFormers' kernels are
another choice of speed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.errors import InputError
from fe_adapter.libraries import import_quietly, require

NAME = "fe_adapter_xformers"  # in transformers' registry of attention functions


def check(vit: Any) -> None:
    """Raise `InputError` where `use` could not: xFormers is missing, or no attention of ``vit`` can be exchanged."""
    _attention()
    if not _timm_modules(vit) and not _has_registry(vit):
        raise InputError(
            f"memory policy 'xformers' is for timm's and transformers' attention, not {type(vit).__name__}"
        )


def use(vit: Any) -> None:
    """Let the attention modules of ``vit`` call xFormers."""
    for module in _timm_modules(vit):
        module.forward = functools.partial(_timm_forward, module)
    if _has_registry(vit):
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _transformers_attention)
        vit.__dict__.setdefault("fe_attention_before", vit.config._attn_implementation)
        vit.config._attn_implementation = NAME


def undo(vit: Any) -> None:
    """Give the attention modules back what they called before."""
    for module in _timm_modules(vit):
        module.__dict__.pop("forward", None)
    if "fe_attention_before" in vit.__dict__:
        vit.config._attn_implementation = vit.__dict__.pop("fe_attention_before")


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


def _timm_modules(vit: nn.Module) -> list[Any]:
    return [
        module
        for module in vit.modules()
        if (type(module).__module__, type(module).__name__) == ("timm.layers.attention", "Attention")
    ]


def _has_registry(vit: Any) -> bool:
    return hasattr(vit, "config") and hasattr(vit.config, "_attn_implementation")


def _attention() -> Any:
    return _imported("xformers.ops", "memory_efficient_attention", "xformers")


def _solver() -> Any:
    return _imported("xformers.checkpoint", "get_optimal_checkpoint_policy", "budget")


def _imported(module: str, name: str, policy: str) -> Any:
    try:
        return getattr(import_quietly(module), name)
    except ImportError:
        raise InputError(f"memory policy {policy!r} needs xFormers; pip install 'fe-adapter[xformers]'") from None


def _timm_forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """timm's own, but for the product; masks are left to it."""
    if attn_mask is not None or is_causal:
        return type(self).forward(self, x, attn_mask=attn_mask, is_causal=is_causal)
    _refuse_cpu(x)
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)  # (B, L, heads, width)
    q, k = self.q_norm(q), self.k_norm(k)
    y = _attention()(q, k, v, p=self.attn_drop.p if self.training else 0.0, scale=self.scale).flatten(2)
    y = self.norm(y)
    if getattr(self, "gate", None) is not None:
        y = y * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(y))


def _transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' registry wants it: (B, heads, L, width) in, (B, L, heads, width) out."""
    _refuse_cpu(query)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    return _attention()(q, k, v, attn_bias=attention_mask, p=dropout, scale=scaling), None
