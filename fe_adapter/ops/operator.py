"""The registered operators ``fe_adapter::adapter_forward`` and ``fe_adapter::adapter_backward``.

One operator per direction, with fake and autograd implementations, so that `torch.compile` sees no graph break and
activation checkpointing can name them. The caller (`fe_adapter.functional.adapter`) has validated everything and
settled autocast: it passes the compute dtype. Outputs never alias inputs or each other. They have the shape of ``x``,
(B, T, L, D) or (B*T, L, D): a view made of them afterwards would lose FSDP2's hook if it were changed in place.
"""

from __future__ import annotations

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


def adapter_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    num_frames: int,
    dilation: Sequence[int],
    max_dilation: float | None,
    causal: bool,
    activation: str,
    num_prefix_tokens: int,
    grid_size: Sequence[int],
    compute_dtype: torch.dtype,
    recompute: str | None,
    needs_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y`` like ``x``; and, empty unless backward wants them, ``h`` (B, T, N, R), ``x`` and the weights as cast.

    ``x`` in the compute dtype, if that is narrower than its own; all weights in it, flat, if theirs is another.
    """
    distances, grid = _triple(dilation), _pair(grid_size)
    dtype = weights[0].dtype
    spec = AdapterSpec(distances, max_dilation, activation, num_prefix_tokens, grid, compute_dtype, dtype, causal)
    keeps_x = needs_backward and keeps_rounded(x.dtype, compute_dtype, recompute)
    parameters = Weights(*weights)
    with torch.cuda.device_of(x):  # where Triton launches
        implementation = choose(backend, as_clips(x, num_frames), parameters, spec)
        y, h, rounded, cast = implementation.forward(x, parameters, keeps_x)
    return (
        y,
        h if needs_backward and recompute != "hidden" else h.new_empty(0),
        h.new_empty(0) if rounded is None else rounded,
        cast if needs_backward and cast is not None else h.new_empty(0),
    )


def keeps_rounded(dtype: torch.dtype, compute_dtype: torch.dtype, recompute: str | None) -> bool:
    """Whether backward is given ``x`` as rounded to the compute dtype: all it reads of it, in fewer bytes."""
    return recompute != "input" and compute_dtype.itemsize < dtype.itemsize


def _fake_forward(
    x, weights, num_frames, dilation, max_dilation, causal, activation, num_prefix_tokens, grid_size, compute_dtype,
    recompute, needs_backward, backend,
):  # fmt: skip
    B, T, L, _ = as_clips(x, num_frames).shape

    def kept(shape, is_kept):
        return x.new_empty(shape if needs_backward and is_kept else (0,), dtype=compute_dtype)

    return (
        x.new_empty(x.shape),
        kept((B, T, L - num_prefix_tokens, weights[0].shape[0]), recompute != "hidden"),
        kept(x.shape, keeps_rounded(x.dtype, compute_dtype, recompute)),
        kept((Weights(*weights).flat_starts()[-1],), weights[0].dtype != compute_dtype),
    )


def adapter_backward(
    dy: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    cast: Tensor | None,
    weights: Sequence[Tensor],
    num_frames: int,
    dilation: Sequence[int],
    max_dilation: float | None,
    causal: bool,
    activation: str,
    num_prefix_tokens: int,
    grid_size: Sequence[int],
    compute_dtype: torch.dtype,
    backend: str,
    needs_dx: bool,
) -> list[Tensor]:
    """``dx`` (empty if not needed), then the gradient of each weight in the weight's dtype."""
    distances, grid = _triple(dilation), _pair(grid_size)
    dtype = weights[0].dtype
    spec = AdapterSpec(distances, max_dilation, activation, num_prefix_tokens, grid, compute_dtype, dtype, causal)
    parameters = Weights(*weights)
    with torch.cuda.device_of(dy):
        implementation = choose(backend, as_clips(dy, num_frames), parameters, spec)
        dx, gradients = implementation.backward(dy, x, y, h, cast, parameters, needs_dx)
    outputs = [dy.new_empty(0) if dx is None else dx]
    return [*outputs, *(gradient.contiguous() for gradient in gradients if gradient is not None)]


def _fake_backward(
    dy, x, y, h, cast, weights, num_frames, dilation, max_dilation, causal, activation, num_prefix_tokens, grid_size,
    compute_dtype, backend, needs_dx,
):  # fmt: skip
    dx = dy.new_empty(dy.shape) if needs_dx else dy.new_empty(0)
    return [dx, *(weight.new_empty(weight.shape) for weight in weights)]


forward_op = register(adapter_forward, _fake_forward)
backward_op = register(adapter_backward, _fake_backward)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, below: Callable, options: tuple, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        y, *kept = below(x, weights, *options)
        *spec, recompute, _, backend = options
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.options = *spec, backend
        h, rounded, cast = kept
        ctx.save_for_backward(
            None if recompute == "input" else rounded if rounded.numel() else x,
            y if recompute == "input" else None,
            None if recompute == "hidden" else h,
            cast if cast.numel() else None,
            *weights,
        )
        return y, *kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, needs_dx = gradients[0], ctx.needs_input_grad[2]
        x, y, h, cast, *weights = ctx.saved_tensors
        if dy is None:
            return None, None, None, *[None] * len(weights)
        dx, *dweights = backward_op(dy, x, y, h, cast, weights, *ctx.options, needs_dx)
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
    lambda below, dy, x, y, h, cast, weights, *options: list(
        _Once.apply(below, (dy, x, y, h, cast, weights, *options), dy, x, y, h, cast, *weights)
    ),
)

IMPLEMENTATIONS: dict[Any, Callable] = {  # what runs when an operator is called, for who wants to look inside
    forward_op: adapter_forward,
    backward_op: adapter_backward,
}
