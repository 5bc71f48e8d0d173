"""Memory of a training step, measured: what autograd keeps, and the most that is alive at once."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def measure_saved_memory(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps after ``model(*inputs)``, parameters left out."""
    saved = SavedStorages(model)
    with saved:
        output = model(*inputs)
    num_bytes = saved.alive()
    del output  # what keeps the graph
    return num_bytes


def measure_peak_memory(step: Callable[[], Any]) -> int:
    """Bytes that ``step()`` held at its peak beyond what was allocated before it.

    On a GPU the caching allocator's own figure; on a CPU the largest running total of PyTorch's allocations, which
    leaves out what libraries allocate themselves.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a CUDA build complains on stderr where there is no GPU
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


class SavedStorages(torch.autograd.graph.saved_tensors_hooks):
    """The storages that autograd saves within the context; those of a module's parameters are left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._left_out = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def alive(self) -> int:
        """Bytes of those that are still there."""
        return sum(storage.nbytes() for storage in self._kept)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._left_out:
            self._kept[storage] = None
        return tensor.detach()  # an output kept as it is would keep its own graph alive
