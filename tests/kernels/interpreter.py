"""Memory checks for Triton's interpreter, where a bad access is as silent as on a GPU.

Within `memory_checks` every tensor given to a launch lies alone between wide gaps, ``torch.empty`` gives NaN, and each
access of an active lane is checked: outside the elements of every argument (those of a view, not its storage), a load
of a NaN, an element stored by two programs or loaded from another's store in one launch, an element twice in a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl

from fe_adapter.kernels import support

GAP = 1 << 20  # bytes


class MemoryFaultError(RuntimeError):
    """An access that would be undefined behaviour on a GPU."""


@dataclasses.dataclass
class _Buffer:
    start: int
    valid: np.ndarray  # one flag a byte: part of an element of an argument
    writer: np.ndarray  # program number of the last store, 0 for none
    name: str


@contextlib.contextmanager
def run_time_ranges() -> Iterator[None]:
    """Let ``range(0, n)`` take a run-time n: Triton 3.6 asks NumPy for an int that NumPy 2.4 no longer gives."""
    from triton.runtime import interpreter

    original, numpy_dtype = interpreter._patch_lang_tensor, interpreter._get_np_dtype
    known: dict[str, np.dtype] = {}

    def patch_tensor(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def find_dtype(dtype):  # which is asked for all the time
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_dtype(dtype.scalar)
        return known[name]

    with (
        mock.patch.object(interpreter, "_patch_lang_tensor", patch_tensor),
        mock.patch.object(interpreter, "_patch_lang", _Patch(interpreter._patch_lang)),
        mock.patch.object(interpreter, "_get_np_dtype", find_dtype),
        mock.patch.object(support, "_can_interpret", return_value=True),
    ):
        yield


class _Patch:
    """The interpreter's own patch of Triton's language, once a launch and not for each function that a kernel calls,
    which took a quarter of all time."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self._patch, self._scope, self._done = patch, None, set()

    def __call__(self, function: Any) -> _Patch:
        modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if modules not in self._done:
            scope = self._patch(function)
            self._done.add(modules)
            self._scope = self._scope or scope  # that of the kernel: of functions it is never taken back
        return self

    def restore(self) -> None:
        """What the launch does at its end."""
        self._scope.restore()
        self._scope, self._done = None, set()


@contextlib.contextmanager
def memory_checks(nan_loads: bool = True) -> Iterator[None]:
    """Check every launch within the block; ``nan_loads=False`` lets NaN be read."""
    from triton.runtime import interpreter

    builder, executor = type(interpreter.interpreter_builder), interpreter.GridExecutor
    buffers: list[_Buffer] = []
    init, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store

    def init_args(self, arguments, keywords):
        arguments, named = init(self, arguments, keywords)
        buffers.clear()
        moved: dict[int, tuple[torch.UntypedStorage, _Buffer]] = {}
        for name, argument in [*zip(self.arg_names, arguments, strict=False), *named.items()]:
            tensor = interpreter._unwrap_tensor(argument)
            if isinstance(tensor, torch.Tensor):
                _isolate(tensor, name, moved, buffers)
        buffers.sort(key=lambda buffer: buffer.start)
        return arguments, named

    def locate(self, pointers, mask):
        """The buffer of the active addresses, their offsets in it, and the active lanes."""
        lanes = np.broadcast_to(np.asarray(mask.data, dtype=bool), pointers.data.shape)
        addresses = pointers.data[lanes].astype(np.int64)
        if not addresses.size:
            return None, addresses, lanes
        starts = [buffer.start for buffer in buffers]
        buffer = buffers[max(0, int(np.searchsorted(starts, addresses[0], side="right")) - 1)]
        offsets = addresses - buffer.start
        inside = (offsets >= 0) & (offsets < buffer.valid.size)
        inside[inside] = buffer.valid[offsets[inside]]
        if not inside.all():
            raise MemoryFaultError(f"out of bounds: {int((~inside).sum())} lanes, near {buffer.name}, {self.grid_idx}")
        return buffer, offsets, lanes

    def program(self) -> int:
        x, y, z = self.grid_idx
        return (x * self.grid_dim[1] + y) * self.grid_dim[2] + z + 1

    def checked_load(self, pointers, mask, other, *rest, **keywords):
        buffer, offsets, lanes = locate(self, pointers, mask)
        out = load(self, pointers, mask, other, *rest, **keywords)
        if buffer is not None:
            if not np.isin(buffer.writer[offsets], (0, program(self))).all():
                raise MemoryFaultError(f"race: loads what another program stored in {buffer.name}")
            values = np.broadcast_to(out.data, lanes.shape)[lanes]
            if values.dtype == np.uint16:  # bf16
                values = (values.astype(np.uint32) << 16).view(np.float32)
            if nan_loads and values.dtype.kind == "f" and np.isnan(values).any():
                raise MemoryFaultError(f"uninitialised: loads NaN from {buffer.name}, {self.grid_idx}")
        return out

    def checked_store(self, pointers, value, mask, *rest):
        buffer, offsets, _ = locate(self, pointers, mask)
        if buffer is not None:
            if np.unique(offsets).size != offsets.size:
                raise MemoryFaultError(f"race: one store writes an element of {buffer.name} twice")
            if not np.isin(buffer.writer[offsets], (0, program(self))).all():
                raise MemoryFaultError(f"race: stores what another program stored in {buffer.name}")
            buffer.writer[offsets] = program(self)
        return store(self, pointers, value, mask, *rest)

    before = torch.are_deterministic_algorithms_enabled()
    with (
        mock.patch.object(executor, "_init_args_hst", init_args),
        mock.patch.object(builder, "create_masked_load", checked_load),
        mock.patch.object(builder, "create_masked_store", checked_store),
    ):
        torch.use_deterministic_algorithms(True)  # torch.empty fills with NaN
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _isolate(tensor: torch.Tensor, name: str, moved: dict[int, Any], buffers: list[_Buffer]) -> None:
    """Move a tensor's storage to where nothing else is near, and mark its elements."""
    old = tensor.untyped_storage()
    if old.data_ptr() not in moved:
        size = old.nbytes()
        home = torch.UntypedStorage(size + 2 * GAP)[GAP : GAP + size]  # a slice shares its memory
        home.copy_(old)
        buffer = _Buffer(home.data_ptr(), np.zeros(size, bool), np.zeros(size, np.int32), name)
        moved[old.data_ptr()] = home, buffer
        buffers.append(buffer)
    home, buffer = moved[old.data_ptr()]
    step = tensor.element_size()
    if tensor.numel():
        strides = (*(s * step for s in tensor.stride()), 1)
        flags = torch.from_numpy(buffer.valid)
        flags.as_strided((*tensor.shape, step), strides, tensor.storage_offset() * step).fill_(True)
    tensor.set_(home, tensor.storage_offset(), tensor.size(), tensor.stride())
