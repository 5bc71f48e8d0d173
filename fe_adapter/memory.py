"""Memory of a training step: measured, or estimated on fake tensors before anything is allocated."""

from __future__ import annotations

import copy
import dataclasses
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step with AdamW."""

    resident: int  # parameters, buffers and inputs
    saved: int  # distinct storages autograd keeps for backward, parameters left out
    peak: int  # the most alive at once, optimizer state included


def estimate_memory(model: nn.Module, *input_shape: int, dtype: torch.dtype = torch.float32) -> MemoryEstimate:
    """What a training step of ``model`` would hold, counted on fake tensors: nothing is computed or allocated.

    What an operator allocates and frees inside itself is not seen, nor is an allocator's fragmentation. The activations
    are those of the device the model is on.

    Args:
        model: any module that takes one tensor; it is left as it is.
        input_shape: of that tensor, for a `VideoClassifier` ``B, T, 3, height, width``.
        dtype: of that tensor.

    Example:
        >>> estimate_memory(classifier, 8, 16, 3, 224, 224).peak / 2**30  # GiB
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _LiveStorages() as live:
        fake = _fake_copy(model, mode)
        device = next((p.device for p in fake.parameters()), torch.device("cpu"))
        for tensor in (*fake.parameters(), *fake.buffers()):
            live.add(tensor)
        x = torch.empty(input_shape, dtype=dtype, device=device)
        resident = live.bytes
        trainable = [p for p in fake.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable) if trainable else None
        saved = measure_saved_memory(fake, x) if trainable else 0
        live.peak = live.bytes
        for _ in range(2):  # the second step has the optimizer's state
            y = fake(x)
            if optimizer is not None:
                y.sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return MemoryEstimate(resident=resident, saved=saved, peak=live.peak)


def measure_saved_memory(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps after ``model(*inputs)``, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor.detach()  # an output kept as it is would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


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


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of ``model`` whose parameters and buffers are fake and take no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        fake = mode.from_tensor(parameter.detach())
        memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = mode.from_tensor(buffer)
    return copy.deepcopy(model, memo)
