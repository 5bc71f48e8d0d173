"""The adapter in eager mode, on plain tensors: what the registered operator does, without its cost to the host.

A call is settled once for its kind: options, dtypes, shapes, strides, alignment, autocast, what the environment says.
It is then one `torch.autograd.Function` around the implementation that was chosen. Whatever wants to see operators
(tracing, dispatch modes, tensor subclasses, functorch, forward-mode derivatives) gets the operator instead, in either
direction. The host waits for every line of this at every layer of every step: it asks as little as it can.
"""

from __future__ import annotations

import operator as operators
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fe_adapter.kernels.spec import AdapterSpec, Kept, Weights, as_clips, as_weights
from fe_adapter.ops import operator
from fe_adapter.ops.dispatch import VARIABLES, choose
from fe_adapter.ops.operator import keeps_rounded

Settle = Callable[[Tensor, Weights, tuple], tuple[int, AdapterSpec]]
_MISALIGNED = 15  # the bits of an address that say it is no multiple of 16
_PLAIN = frozenset((Tensor, nn.Parameter))
_PLAIN_OR_NONE = _PLAIN | {type(None)}
_kept = Kept()
_environment: Any = getattr(os.environ, "_data", os.environ)  # reading the dictionary below is ten times as fast
_variables = [os.environ.encodekey(name) if _environment is not os.environ else name for name in VARIABLES]
_count_modes, _has_function_mode = torch._C._len_torch_dispatch_stack, torch._C._is_torch_function_mode_enabled
_get_transform, _get_tracing_state = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state
_get_fp32_precision, _any_requires_grad = torch._C._get_fp32_precision_getter, torch._C._any_requires_grad
_is_compiling = torch.compiler.is_dynamo_compiling
_shape_of, _dtype_of = operators.attrgetter("shape"), operators.attrgetter("dtype")
_device_of, _is_contiguous = Tensor.get_device, Tensor.is_contiguous
_stride_of, _address_of, _is_negated = Tensor.stride, Tensor.data_ptr, Tensor.is_neg


def call(x: Tensor, weights: Weights, options: tuple, settle: Settle) -> Tensor | None:
    """The adapter of ``weights`` on ``x``; None where more than the result is asked for, or ``x`` holds no values.

    Args:
        x: (B, T, L, D) or (B*T, L, D).
        weights: of the adapter.
        options: those of `fe_adapter.functional.adapter`; the last two are ``recompute`` and ``backend``. After them,
            whatever else tells one kind of call from another.
        settle: given all of them, checks them, and returns the frames T of a clip and the spec. Called once for all
            calls of a kind.
    """
    if _is_compiling() or type(x) is not Tensor:
        return None
    if x.is_cuda:
        device_type = "cuda"
    elif x.is_cpu:
        device_type = "cpu"
    else:
        return None
    if _is_watched() or _has_function_mode() or _get_tracing_state() is not None:
        return None
    has_six = weights.dilation is None and weights.dilation_bias is None
    tensors: tuple[Any, ...] = (x, *weights[:6]) if has_six else (x, *weights)
    if not _PLAIN.issuperset(map(type, tensors)):
        return None
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    try:
        addresses = tuple(map(_address_of, tensors))
        key = (  # flat, and of objects that mostly are there already: to make and compare others takes the host longer
            *options,
            autocast,
            _get_fp32_precision("cuda", "matmul") if autocast is None and x.dtype == torch.float32 else None,
            *map(_environment.get, _variables),
            *map(_shape_of, tensors),
            *map(_dtype_of, tensors),
            *map(_device_of, tensors),
            *(map(_MISALIGNED.__and__, addresses) if device_type == "cuda" else ()),
            *(() if all(map(_is_contiguous, tensors)) else map(_stride_of, tensors)),
        )
        found = _kept.get(key)
    except (AttributeError, TypeError, RuntimeError):  # no dense tensor, or an option without a hash, such as a list
        return None
    if not all(addresses) or any(map(_is_negated, tensors)):
        return None  # empty; on "meta", whose number is the CPU's; or not what lies in memory, but its negative
    if found is None:
        found = _kept.keep(key, _Call(x, weights, options, settle))
    if found.device_index is not None and found.device_index != torch._C._cuda_getDevice():
        with torch.cuda.device(found.device_index):  # where Triton launches
            return call(x, weights, options, settle)
    if torch.is_grad_enabled() and _any_requires_grad(*tensors):
        return _apply(found, weights, addresses[1:], *tensors)
    return found.forward(x, weights, False)[0]


def _is_watched() -> bool:
    """Whether a dispatch mode, functorch or a forward-mode derivative wants to see operators."""
    return _count_modes() > 0 or _get_transform() is not None or forward_ad._current_level >= 0


def _are_where(addresses: tuple[int, ...], tensors: list[Tensor]) -> bool:
    """Whether they are at ``addresses``, whose alignment and device are known, and lie there as kernels read them."""
    are_same = addresses == tuple(map(_address_of, tensors)) and all(map(_is_contiguous, tensors))
    return are_same and not any(map(_is_negated, tensors))


class _Call:
    """What is settled of one kind of call."""

    def __init__(self, x: Tensor, weights: Weights, options: tuple, settle: Settle) -> None:
        num_frames, spec = settle(x, weights, options)
        self.recompute, backend = options[7:9]
        self.device_index = x.device.index
        with torch.cuda.device_of(x):
            implementation = choose(backend, as_clips(x, num_frames), weights, spec)
        self.forward, self.backward = implementation.forward, implementation.backward
        self.keeps_x = keeps_rounded(x.dtype, spec.compute_dtype, self.recompute)
        self.options = (
            num_frames, spec.dilation, spec.max_dilation, spec.causal, spec.activation, spec.num_prefix_tokens,
            spec.grid_size, spec.compute_dtype, backend,
        )  # fmt: skip


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, weights: Weights, addresses: tuple[int, ...], x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        y, h, rounded, cast = call.forward(x, weights, call.keeps_x)
        ctx.call, ctx.addresses = call, addresses
        if call.recompute is None:
            ctx.save_for_backward(x if rounded is None else rounded, None, h, cast, *parameters)
        elif call.recompute == "hidden":
            ctx.save_for_backward(x if rounded is None else rounded, None, None, cast, *parameters)
        else:
            ctx.save_for_backward(None, y, h, cast, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        x, y, h, cast, *parameters = saved = ctx.saved_tensors
        needs_dx, dy = ctx.needs_input_grad[3], dy.resolve_neg() if dy.is_neg() else dy  # kernels see the memory alone
        weights = as_weights(parameters) if len(parameters) == 8 else as_weights((*parameters, None, None))
        is_plain = type(dy) is Tensor and _PLAIN_OR_NONE.issuperset(map(type, saved))
        if not (is_plain and _are_where(ctx.addresses, parameters)) or torch.is_grad_enabled() or _is_watched():
            # what hooks gave back, weights that have moved; and second derivatives and tangents of dy, which it refuses
            tensors = [p for p in weights if p is not None]
            dx, *found = operator.backward_op(dy, x, y, h, cast, tensors, *call.options, needs_dx)
            return None, None, None, dx if needs_dx else None, *found, *[None] * (len(weights) - len(found))
        dx, gradients = call.backward(dy, x, y, h, cast, weights, needs_dx)
        return None, None, None, dx, *gradients


_apply: Any = super(torch.autograd.Function, _Direct).apply  # without a look for functorch's wrappers: there are none
