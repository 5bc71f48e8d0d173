"""What runs around a block so that less of it is kept for backward.

The policies ``selective``, ``full``, ``offload`` and ``budget`` are PyTorch's own checkpoints. They differ in what they
keep beside the block's input, and in where that waits.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fe_adapter.memory import xformers
from fe_adapter.models.blocks import first_argument, with_first_argument

CHECKPOINTS = ("selective", "full", "offload", "budget")
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


class Checkpoint:
    """A policy around one block, as of `fe_adapter.models.blocks.BlockState.around`.

    Args:
        kind: "full", "selective", "offload", or "budget=" with a share from 0 to 1.
    """

    _observe: Callable[[str], None] | None = None

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._solution: Any = None  # of a budget: what to keep

    @classmethod
    @contextlib.contextmanager
    def observed(cls, observe: Callable[[str], None]) -> Iterator[None]:
        """Within the context ``observe`` is told of "checkpoints" and of "choices" that the host makes in Python."""
        cls._observe = observe
        try:
            yield
        finally:
            cls._observe = None

    def __call__(self, run: Callable, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        if Checkpoint._observe is not None:
            Checkpoint._observe("checkpoints")
        with HostMemory() if self.kind == "offload" else contextlib.nullcontext():
            return checkpoint(
                run,
                *args,
                use_reentrant=False,
                preserve_rng_state=block.training,  # a frozen block is in evaluation mode: nothing in it is random
                **self._selection(run, args, kwargs),
                **kwargs,
            )

    def _selection(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's options that say what to keep."""
        if self.kind == "selective":
            return _selective(functools.partial(_keep_attention, first_argument(args, kwargs).shape[-1]))
        if self.kind.startswith("budget="):
            if self._solution is None:
                self._solution = self._solve(run, args, kwargs)
            return _selective(copy.deepcopy(self._solution))  # it counts the operators as they come
        return {}

    def _solve(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        def run_on(tokens: Tensor) -> Any:
            args_here, kwargs_here = with_first_argument(tokens, args, kwargs)
            return run(*args_here, **kwargs_here)

        return xformers.solve(run_on, first_argument(args, kwargs), float(self.kind.removeprefix("budget=")))


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


def _selective(keep: Any) -> dict[str, Any]:
    return {"context_fn": functools.partial(create_selective_checkpoint_contexts, keep), **_SELECTIVE}


def _keep_attention(width: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep attention's core and the products of its projections, ``width`` wide in and up to 3 ``width`` out."""
    if Checkpoint._observe is not None:
        Checkpoint._observe("choices")
    if op in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
        rows, columns = args[-1].shape
        if rows == width and columns <= 3 * width:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
