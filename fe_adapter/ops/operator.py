"""The registered operators ``fe_adapter::adapter_forward`` and ``fe_adapter::adapter_backward``.

One operator per direction, with fake and autograd implementations, so that `torch.compile` sees no graph break and
activation checkpointing can name them. The caller (`fe_adapter.functional.adapter`) has validated everything and
settled autocast: it passes the compute dtype. Outputs never alias inputs or each other. They have the shape of ``x``,
(B, T, L, D) or (B*T, L, D): a view made of them afterwards would lose FSDP2's hook if it were changed in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fe_adapter.kernels.spec import AdapterSpec, Weights, as_clips
from fe_adapter.ops.dispatch import choose
from fe_adapter.ops.registration import register, register_autograd


def _pair(grid_size: Sequence[int]) -> tuple[int, int]:
    H, W = grid_size
    return H, W


def _triple(dilation: Sequence[int]) -> tuple[int, int, int]:
    t, h, w = dilation
    return t, h, w


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def adapter_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    num_frames: int,
    dilation: Sequence[int],
    max_dilation: float | None,
    activation: str,
    num_prefix_tokens: int,
    grid_size: Sequence[int],
    compute_dtype: torch.dtype,
    recompute: str | None,
    needs_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``y`` like ``x``, and ``h`` (B, T, N, R), empty unless backward wants it."""
    distances, grid = _triple(dilation), _pair(grid_size)
    spec = AdapterSpec(distances, max_dilation, activation, num_prefix_tokens, grid, compute_dtype)
    with _without_autocast(x.device.type):
        clips, parameters = as_clips(x, num_frames), Weights(*weights)
        y, h = choose(backend, clips, parameters, spec).forward(clips, parameters, spec)
    y = torch.ops.aten._unsafe_view(y, x.shape)  # as for any product that PyTorch reshapes: no view, no copy
    return y, h if needs_backward and recompute != "hidden" else h.new_empty(0)


def _fake_forward(
    x, weights, num_frames, dilation, max_dilation, activation, num_prefix_tokens, grid_size, compute_dtype, recompute,
    needs_backward, backend,
):  # fmt: skip
    B, T, L, _ = as_clips(x, num_frames).shape
    keeps_h = needs_backward and recompute != "hidden"
    shape = (B, T, L - num_prefix_tokens, weights[0].shape[0]) if keeps_h else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=compute_dtype)


def adapter_backward(
    dy: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    weights: Sequence[Tensor],
    num_frames: int,
    dilation: Sequence[int],
    max_dilation: float | None,
    activation: str,
    num_prefix_tokens: int,
    grid_size: Sequence[int],
    compute_dtype: torch.dtype,
    backend: str,
    needs_dx: bool,
) -> list[Tensor]:
    """``dx`` (empty if not needed), then the gradient of each weight in the weight's dtype."""
    distances, grid = _triple(dilation), _pair(grid_size)
    spec = AdapterSpec(distances, max_dilation, activation, num_prefix_tokens, grid, compute_dtype, weights[0].dtype)
    with _without_autocast(dy.device.type):
        dy_clips = as_clips(dy, num_frames)
        x, y = (None if z is None else as_clips(z, num_frames) for z in (x, y))
        parameters = Weights(*weights)
        implementation = choose(backend, dy_clips, parameters, spec)
        dx, gradients = implementation.backward(dy_clips, x, y, h, parameters, spec, needs_dx)
    outputs = [dy.new_empty(0) if dx is None else dx.view(dy.shape)]
    for weight, gradient in zip(weights, gradients, strict=False):  # a static adapter has no last two
        assert gradient is not None
        outputs.append(gradient.to(weight.dtype).contiguous())
    return outputs


def _fake_backward(
    dy, x, y, h, weights, num_frames, dilation, max_dilation, activation, num_prefix_tokens, grid_size, compute_dtype,
    backend, needs_dx,
):  # fmt: skip
    dx = dy.new_empty(dy.shape) if needs_dx else dy.new_empty(0)
    return [dx, *(weight.new_empty(weight.shape) for weight in weights)]


forward_op = register(adapter_forward, _fake_forward)
backward_op = register(adapter_backward, _fake_backward)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, below: Callable, options: tuple, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, h = below(x, weights, *options)
        *spec, recompute, _, backend = options
        ctx.mark_non_differentiable(h)
        ctx.set_materialize_grads(False)
        ctx.options = *spec, backend
        ctx.save_for_backward(
            None if recompute == "input" else x,
            y if recompute == "input" else None,
            None if recompute == "hidden" else h,
            *weights,
        )
        return y, h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, needs_dx = gradients[0], ctx.needs_input_grad[2]
        x, y, h, *weights = ctx.saved_tensors
        if dy is None:
            return None, None, None, *[None] * len(weights)
        dx, *dweights = backward_op(dy, x, y, h, weights, *ctx.options, needs_dx)
        return None, None, dx if needs_dx else None, *dweights


class _Once(torch.autograd.Function):
    """The backward operator where a gradient of its results might be asked for."""

    @staticmethod
    def forward(ctx: Any, below: Callable, arguments: tuple, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(below(*arguments))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        raise RuntimeError(
            "the fused adapter can be differentiated once; for second derivatives use FEAdapter, its plain PyTorch form"
        )


register_autograd(forward_op, lambda below, x, weights, *options: _Differentiable.apply(below, options, x, *weights))
register_autograd(
    backward_op,
    lambda below, dy, x, y, h, weights, *options: list(
        _Once.apply(below, (dy, x, y, h, weights, *options), dy, x, y, h, *weights)
    ),
)

IMPLEMENTATIONS: dict[Any, Callable] = {  # what runs when an operator is called, for who wants to look inside
    forward_op: adapter_forward,
    backward_op: adapter_backward,
}
