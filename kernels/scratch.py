"""What the launchers allocate: tensors between their kernels, and the gradients of the convolution's parameters.

`fe_adapter.memory.estimate` counts a GPU's memory by the same functions, on fake tensors: importing this never imports
Triton.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fe_adapter.kernels.spec import PAD, ConvGradients, Rows, Weights, ceil_div

# What Inductor's code calls, private: it takes the host half as long as `torch.empty` and `torch.as_strided`.
_for_inductor: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
_empty_on_gpu: Any = getattr(_for_inductor, "_empty_strided_cuda", None)
view_of_whole: Any = getattr(_for_inductor, "_reinterpret_tensor", torch.as_strided)  # from where a tensor begins


def settled_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """What makes an empty tensor, contiguous, at every call; a GPU is then the current device."""
    if device.type != "cuda" or _empty_on_gpu is None:
        return functools.partial(torch.empty, shape, dtype=dtype, device=device)
    return functools.partial(_empty_on_gpu, tuple(shape), torch.empty(shape, device="meta").stride(), dtype)


class ConvScratch(NamedTuple):
    """What the first backward kernel of the convolution leaves for the next ones."""

    sums: Tensor  # (programs, K·kh·kw + 1, R), partial sums of the gradients of the taps and of their bias
    d: Tensor | None  # (B, T, N), the dilation, of a dynamic one
    da: Tensor | None  # (B, T, N), the gradient of what predicts it


def token_programs(h: Tensor, num_prefix_tokens: int, block_rows: int) -> int:
    """Programs of the convolution, each ``block_rows`` of a clip's tokens; ``h`` is (B, T, N, R)."""
    B, T, N, _ = h.shape
    return B * ceil_div(T * (num_prefix_tokens + N), block_rows)


def empty_rows(h: Tensor, num_prefix_tokens: int, embed_dim: int) -> Rows:
    """In the dtype of ``h`` (B, T, N, R)."""
    B, T, N, R = h.shape
    return Rows(h.new_empty(B * T * (num_prefix_tokens + N), R + PAD), embed_dim)


def conv_scratch(h: Tensor, weights: Weights, programs: int) -> ConvScratch:
    """For the first backward kernel."""
    B, T, N, R = h.shape
    sums = h.new_empty(programs, weights.conv[0].numel() + 1, R, dtype=torch.float32)
    if weights.dilation is None:
        return ConvScratch(sums, None, None)
    return ConvScratch(sums, *(h.new_empty(B, T, N, dtype=torch.float32) for _ in range(2)))


def hidden_sums(h: Tensor, programs: int) -> Tensor:
    """(programs, 4, R): partial sums of dh and, where the dilation is dynamic, of dW_δ; else those rows stay empty."""
    return h.new_empty(programs, 4, h.shape[-1], dtype=torch.float32)


def conv_gradients(weights: Weights, dtype: torch.dtype) -> ConvGradients:
    """The gradients in ``dtype``, to be filled."""
    parts = weights.conv, weights.conv_bias, weights.down_bias, weights.dilation, weights.dilation_bias
    return ConvGradients(*(None if p is None else torch.empty_like(p, dtype=dtype) for p in parts))  # type: ignore[arg-type]


class Layout:
    """Several tensors in one allocation, each aligned as one of its own would be.

    Attributes:
        bytes: of all of them.
        starts: of each, in bytes.
    """

    def __init__(self, *parts: tuple[tuple[int, ...], torch.dtype]) -> None:
        self._parts = parts
        sizes = (math.prod(shape) * dtype.itemsize for shape, dtype in parts)
        *self.starts, self.bytes = itertools.accumulate((ceil_div(n, 256) * 256 for n in sizes), initial=0)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Each in an allocation of its own."""
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self._parts]
