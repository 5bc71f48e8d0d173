"""Launches of Triton kernels, past what its JIT asks of every call.

The JIT types, aligns and hashes all arguments again on each call, which takes the host longer than many of these
kernels take a GPU. Here grid, numbers and constants are settled once. The first call goes through the JIT, which then
is made to show how it calls Triton's C launcher, in place of a second launch. If that is as known here, later calls do
the same; it is private, and differs between releases. If not, or while somebody's launch hooks are set, all go through
the JIT.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fe_adapter.kernels.spec import Kept

_kept = Kept()
_binding = threading.Lock()  # what one thread puts into Triton's launcher for a moment, another must not take for it
_knobs = triton.knobs.runtime
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a build without CUDA has none


class Launch:
    """One kernel with its grid, numbers and constants; a call brings the tensors.

    From one call to the next tensors keep their dtypes, their device, and whether they are aligned to 16 bytes: whoever
    owns the launch sees to that.

    Attributes:
        is_bound: whether `run` may be called, while launches are not hooked (`is_hooked`).
    """

    __slots__ = ("_after", "_before", "_device", "_grid", "_is_known", "_kernel", "_launcher", "_numbers", "_options",
                 "_rest", "_takes_tuple", "is_bound")  # fmt: skip

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple, options: dict[str, Any]) -> None:
        self._kernel, self._grid, self._numbers, self._options = kernel, grid, numbers, options
        self.is_bound = self._is_known = False  # known: whether it can be bound

    def run(self, *pointers: int | None) -> None:
        """Launch on tensors given by their addresses, on the current stream of their device, the current device."""
        arguments = (*pointers, *self._rest)
        stream = _current_stream(self._device)
        if self._takes_tuple:
            self._launcher(*self._before, stream, *self._after, arguments)
        else:
            self._launcher(*self._before, stream, *self._after, *arguments)

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch, as `run` does."""
        if self.is_bound and not is_hooked():
            self.run(*[None if t is None else t.data_ptr() for t in tensors])
            return
        compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._options)
        if not self._is_known and isinstance(self._kernel, triton.JITFunction) and not is_hooked():
            self._is_known = True
            self._bind(compiled, tensors)

    def _bind(self, compiled: Any, tensors: tuple[Tensor | None, ...]) -> None:
        with _binding:
            launcher = getattr(compiled, "_run", None)
            launch = getattr(launcher, "launch", None)
            if launcher is None or launch is None:
                return
            outer, inner, thread = [], [], threading.get_ident()

            def call_launcher(*arguments: Any) -> None:
                if threading.get_ident() == thread:
                    outer.append(arguments)
                launcher(*arguments)

            def call_c(*arguments: Any) -> None:
                if threading.get_ident() == thread:
                    inner.append(arguments)
                else:  # a launch of somebody else's
                    launch(*arguments)

            compiled._run, launcher.launch = call_launcher, call_c
            try:
                self._kernel[self._grid](*tensors, *self._numbers, **self._options)
            finally:
                compiled._run, launcher.launch = launcher, launch
        needs_memory = any(getattr(launcher, f"{name}_scratch_size", 1) for name in ("global", "profile"))
        if len(outer) != 1 or len(inner) != 1 or needs_memory:
            return
        names = self._kernel.arg_names[len(tensors) + len(self._numbers) :]
        rest = *self._numbers, *(self._options[name] for name in names)
        x, y, z, stream, function, _, *for_hooks = outer[0][:9]
        arguments, given = outer[0][9:], inner[0]
        takes_tuple = isinstance(given[-1], tuple) and _are_same(given[-1], arguments)
        head = list(given[:-1] if takes_tuple else given[: -len(arguments)])
        known = takes_tuple or _are_same(given[len(head) :], arguments)
        places = [i for i in range(len(head) - 4) if _are_same(head[i : i + 5], (x, y, z, stream, function))]
        if not known or not places or not _are_same(arguments, (*tensors, *rest)):
            return
        at = places[0] + 3
        head = [None if any(value is other for other in for_hooks) else value for value in head]
        self._before, self._after, self._rest, self._takes_tuple = head[:at], head[at + 1 :], rest, takes_tuple
        self._device = next(t.device.index for t in tensors if t is not None)
        self._launcher: Callable[..., None] = launch
        self.is_bound = True


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: tuple[Tensor | None, ...], numbers: tuple, options: dict[str, Any]
) -> None:
    """Launch ``kernel`` on ``tensors``, whatever they are like, by a `Launch` that is kept for the next such call."""
    if not isinstance(kernel, triton.JITFunction):  # the interpreter's, or one that only notes its calls
        kernel[grid](*tensors, *numbers, **options)
        return
    kinds = tuple(None if t is None else (t.dtype, t.device, t.data_ptr() % 16) for t in tensors)
    key = kernel, grid, kinds, numbers, tuple(options.items())
    kept = _kept.get(key) or _kept.keep(key, Launch(kernel, grid, numbers, options))
    kept(*tensors)


def is_hooked() -> bool:
    """Whether somebody wants to be told of launches, by Triton's own hooks."""
    enter, leave = _knobs.launch_enter_hook, _knobs.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _are_same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether they hold the same tensors and equal values."""
    return len(a) == len(b) and all(
        x is y or (not (isinstance(x, Tensor) or isinstance(y, Tensor)) and x == y) for x, y in zip(a, b, strict=True)
    )
