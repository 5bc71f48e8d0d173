"""What the launchers allocate: tensors between their kernels, and the gradients of the convolution's parameters.

`fe_adapter.memory.estimate` counts a GPU's memory by the same functions, on fake tensors: importing this never imports
Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights, ceil_div


class ConvScratch(NamedTuple):
    """What the first backward kernel of the convolution leaves for the next ones."""

    sums: Tensor  # (programs, K·kh·kw + 1, R), partial sums of the gradients of the taps and of their bias
    d: Tensor | None  # (B, T, N), the dilation, of a dynamic one
    da: Tensor | None  # (B, T, N), the gradient of what predicts it


def token_programs(h: Tensor, num_prefix_tokens: int, block_rows: int) -> int:
    """Programs of the convolution, each ``block_rows`` of a clip's tokens; ``h`` is (B, T, N, R)."""
    B, T, N, _ = h.shape
    return B * ceil_div(T * (num_prefix_tokens + N), block_rows)


def activated_rows(h: Tensor, spec: AdapterSpec) -> Tensor:
    """For ``[φ(c) | 1 | 0 …]`` (B, T, L, R + PAD)."""
    B, T, N, R = h.shape
    return h.new_empty(B, T, spec.num_prefix_tokens + N, R + PAD)


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


def conv_gradients(weights: Weights, da: Tensor | None, dtype: torch.dtype) -> ConvGradients:
    """The gradients in ``dtype``, to be filled but for the last: all of a dilation bias's gradient is ``Σ da``."""
    conv, conv_bias, down_bias, dilation = (
        None if p is None else torch.empty_like(p, dtype=dtype)
        for p in (weights.conv, weights.conv_bias, weights.down_bias, weights.dilation)
    )
    assert conv is not None
    assert conv_bias is not None
    assert down_bias is not None
    return ConvGradients(conv, conv_bias, down_bias, dilation, None if da is None else da.sum().reshape(1))
