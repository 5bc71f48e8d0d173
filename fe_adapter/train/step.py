"""Forward, loss and backward of one batch: run as they are, or captured once as a CUDA graph and replayed.

The host needs some tens of milliseconds to queue the operators of a step, where an H100 computes them in as many or
fewer. A graph is one launch. What differs from batch to batch are the values of its inputs, never where they are.
"""

from __future__ import annotations

import collections
import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fe_adapter.errors import InputError, first_line
from fe_adapter.models.inference import OnItsWay

_log = logging.getLogger("fe_adapter")

Function = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]  # (video, target, weight) -> loss
Receive = Callable[[list[float]], None]
_TORCH = Path(torch.__file__).parent
_WARM_UP = 3  # runs before a capture, as PyTorch advises: kernels are compiled and libraries choose algorithms
_MOST_GRAPHS = 3  # of one run: the first, and two of other shapes


class Step:
    """``loss = step(video, target, weight)``: adds ``weight`` times the gradient of a batch's loss to the parameters'.

    The loss is a tensor on the device, which nobody has waited for.

    Args:
        function: what a step is: computes the loss, calls backward on ``weight`` times it, returns it detached. To it a
            number and a tensor are the same as ``weight``.
        parameters: what is trained. While steps are captured their gradients stay where they are: zero them in place.
        buffers: what forward may change besides; batches that run before a capture leave it as it was.
        capture: "auto" captures on a GPU where it can and logs why, where it cannot; "on" refuses there; "off".
        obstacle: why this run cannot be captured, as far as is known beforehand; None if it can.

    Attributes:
        is_capturing: whether batches run as graphs, those aside that are not worth one.
        is_paused: set it to have batches run as they are for now.

    Raises:
        InputError: ``capture`` is "on", and there is an obstacle.
    """

    def __init__(
        self,
        function: Function,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
        capture: str,
        obstacle: str | None,
    ) -> None:
        if capture == "on" and obstacle is not None:
            raise InputError(f"capture='on' cannot be honoured: {obstacle}")
        self._function, self._parameters, self._buffers = function, parameters, buffers
        self._is_forced = capture == "on"
        self.is_capturing, self.is_paused = capture != "off" and obstacle is None, False
        self._graphs: dict[tuple, _Graph] = {}
        if capture == "auto" and obstacle is not None and torch.cuda.is_available():
            _log.info("steps are not captured: %s", obstacle)

    def __call__(self, video: Tensor, target: Tensor, weight: float) -> Tensor:
        graph = self._graph(video, target) if self.is_capturing and not self.is_paused else None
        if graph is None:
            return self._function(video, target, weight)
        return graph(video, target, weight)

    def _graph(self, video: Tensor, target: Tensor) -> _Graph | None:
        """The graph of such batches, made if need be; None for those that run as they are."""
        key = video.shape, video.dtype, target.shape, target.dtype
        if key in self._graphs:
            return self._graphs[key]
        is_short = any(video.shape[1:] == shape[1:] and len(video) < shape[0] for shape, *_ in self._graphs)
        if is_short or len(self._graphs) == _MOST_GRAPHS:  # the last batch of an epoch; or one of many shapes
            return None
        try:
            graph = self._graphs[key] = _Graph(self._function, self._parameters, self._buffers, video, target)
        except InputError:  # captured or not, such a batch cannot be
            raise
        except (RuntimeError, ValueError) as error:  # whatever a capture does not allow
            self._graphs.clear()
            self.is_capturing = False
            reason = _reason(error)
            if self._is_forced:
                raise InputError(f"capture='on' cannot be honoured: {reason}") from error
            _log.warning("steps are not captured: %s", reason)
            return None
        return graph


class _Graph:
    """A step for batches of one shape."""

    def __init__(
        self,
        function: Function,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
        video: Tensor,
        target: Tensor,
    ) -> None:
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        state = [p.grad for p in parameters if p.grad is not None]
        state += [b for b in buffers if not b.is_inference() and 0 not in b.stride()]  # others can't be written to
        before = [tensor.clone() for tensor in state]
        self._video, self._target = video.clone(), target.clone()
        self._weight = torch.ones((), device=video.device)
        inputs, random = (self._video, self._target, self._weight), torch.cuda.get_rng_state(video.device)
        stream = torch.cuda.Stream(video.device)  # of warm-up and capture alike: gradients are added up on it
        stream.wait_stream(torch.cuda.current_stream(video.device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP - 1):
                    function(*inputs)
                _run_without_waiting(function, inputs)
            torch.cuda.current_stream(video.device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # what other threads do, such as one that pins the next batch, is none of the graph's business
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._loss = function(*inputs)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(state, before)
            torch.cuda.set_rng_state(random, video.device)

    def __call__(self, video: Tensor, target: Tensor, weight: float) -> Tensor:
        self._video.copy_(video, non_blocking=True)
        self._target.copy_(target, non_blocking=True)
        self._weight.fill_(weight)
        self._graph.replay()
        return self._loss.clone()  # the next replay overwrites it, before it is read


def _run_without_waiting(function: Function, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Raise where ``function`` waits for the device: in the midst of a capture that would leave the allocator torn."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype, and does not see everything that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        function(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _reason(error: BaseException) -> str:
    """One line, with the last line of Python that led to it and is not PyTorch's own."""
    while error.__context__ is not None:  # what ended a capture, and not what that led to
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return "a graph beside what is there does not fit the GPU's memory"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if _TORCH not in Path(f.filename).parents), frames[-1])
    return f"{first_line(error)} (at {frame.line or frame.name!r}, {frame.filename}:{frame.lineno})"


class Late:
    """Reads values from the device a step late: the host has queued the next step before it may wait for this one."""

    def __init__(self) -> None:
        self._pending: collections.deque[tuple[OnItsWay, Receive]] = collections.deque()

    def read(self, values: Sequence[Tensor], receive: Receive) -> None:
        """Let ``receive`` have the ``values`` (scalars) when the next ones are read, or at `flush`; all in turn."""
        dtype = functools.reduce(torch.promote_types, (value.dtype for value in values))
        stacked = torch.stack([value.detach().reshape(()).to(dtype) for value in values])
        self._pending.append((OnItsWay(stacked), receive))
        self._deliver(all_but=1)

    def flush(self) -> None:
        """Deliver all that is pending."""
        self._deliver(all_but=0)

    def _deliver(self, all_but: int) -> None:
        while len(self._pending) > all_but:
            values, receive = self._pending.popleft()
            receive(values.read().tolist())
