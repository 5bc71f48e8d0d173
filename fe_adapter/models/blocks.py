"""How a block of an image transformer runs: an adapter in front of it, and less kept of it for backward.

What replaces a block's behaviour are module-level functions that find everything on the block they are called with, so
that a copy of a model, deep or pickled, is independent of the original.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fe_adapter.memory import xformers
from fe_adapter.ops.gelu2bit import gelu2bit, kind_of_gelu

_ATTENTION = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
)

_HOOKS = "respect_saved_tensors_hooks"  # from PyTorch 2.14 on it wants to be told
_SELECTIVE = {_HOOKS: True} if _HOOKS in inspect.signature(checkpoint).parameters else {}


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The tokens that a block is called with: they come first, also by name."""
    return args[0] if args else next(iter(kwargs.values()))


def with_first_argument(tokens: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a block with other tokens."""
    return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): tokens})


def adapt_input(block: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook: the adapter replaces the block's input, unless a checkpoint around both does it."""
    return None if "fe_checkpoint" in block.__dict__ else _adapted_input(block, args, kwargs)


def adapted_forward(forward: Any, block: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``forward``, which calls the adapter before the MLP, or the block's own where adapters are disabled."""
    if not block.fe_adapter_enabled:
        return type(block).forward(block, *args, **kwargs)
    return forward(block, *args, **kwargs)


def set_checkpoint(block: Any, kind: str | None) -> None:
    """Keep less of ``block`` and its adapters for backward; None keeps everything.

    ``kind`` is "full", "selective", "offload", or "budget=" with a share from 0 to 1.
    """
    if "fe_checkpoint" in block.__dict__:
        _, inner = block.forward.args
        del block.fe_checkpoint, block.forward
        block.__dict__.pop("fe_kept", None)
        if inner is not None:
            block.forward = inner
    if kind is not None:
        block.fe_checkpoint = kind
        block.forward = functools.partial(_checkpointed_forward, block, block.__dict__.get("forward"))


def set_gelu2bit(block: nn.Module, wanted: bool) -> None:
    """Make GELUs of ``block`` keep two bits an element, or what they kept before."""
    for module in block.modules():
        kind = kind_of_gelu(module)
        if kind is None:
            continue
        module.__dict__.pop("forward", None)
        if wanted:
            module.forward = functools.partial(gelu2bit, kind=kind)


class HostMemory(saved_tensors_hooks):
    """Within the context, what autograd saves waits in the host's memory, pinned where there is a GPU."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> tuple[torch.device, Tensor]:
        host = torch.empty_like(tensor, device=self.device, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    @staticmethod
    def _unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, host = packed
        return host.to(device, non_blocking=True)


def _adapted_input(block: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if not getattr(block, "fe_adapter_enabled", False) or not hasattr(block, "fe_adapter"):
        return args, kwargs
    return with_first_argument(block.fe_adapter(first_argument(args, kwargs)), args, kwargs)


def _checkpointed_forward(block: Any, inner: Any, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(_adapter_and_block, block, inner)
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    options: dict[str, Any] = {}
    if block.fe_checkpoint == "selective":
        width = first_argument(args, kwargs).shape[-1]
        keep = functools.partial(_keep_attention, width)
        options = _selective(keep)
    elif block.fe_checkpoint.startswith("budget="):
        if "fe_kept" not in block.__dict__:
            block.fe_kept = _solve(block, run, args, kwargs)
        options = _selective(copy.deepcopy(block.fe_kept))  # it counts the operators as they come
    with HostMemory() if block.fe_checkpoint == "offload" else contextlib.nullcontext():
        return checkpoint(
            run,
            *args,
            use_reentrant=False,
            preserve_rng_state=block.training,  # a frozen block is in evaluation mode: nothing in it is random
            **options,
            **kwargs,
        )


def _solve(block: Any, run: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    def run_on(tokens: Tensor) -> Any:
        args_here, kwargs_here = with_first_argument(tokens, args, kwargs)
        return run(*args_here, **kwargs_here)

    return xformers.solve(run_on, first_argument(args, kwargs), float(block.fe_checkpoint.removeprefix("budget=")))


def _selective(keep: Any) -> dict[str, Any]:
    return {"context_fn": functools.partial(create_selective_checkpoint_contexts, keep), **_SELECTIVE}


def _adapter_and_block(block: Any, inner: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = _adapted_input(block, args, kwargs)
    return type(block).forward(block, *args, **kwargs) if inner is None else inner(*args, **kwargs)


def _keep_attention(width: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep attention's core and the products of its projections, ``width`` wide in and up to 3 ``width`` out."""
    if op in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
        rows, columns = args[-1].shape
        if rows == width and columns <= 3 * width:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
