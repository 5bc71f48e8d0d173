"""What travels between the operator and its backends: weights, gradients, and what else defines an adapter."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

DESIGNS = ("fused", "gemm", "resident", "tail")  # of the Triton backend: see docs/kernels.md
CONV_ROWS = 16  # tokens of a program of the convolution, which leaves one row of partial sums
PAD = 8  # columns after φ(c): one for the bias, the rest zeros that keep rows aligned


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up; `triton.cdiv` takes several microseconds."""
    return -(-a // b)


class Weights(NamedTuple):
    """The adapter's parameters, or their gradients. A static adapter has no dilation predictor."""

    down: Tensor  # (R, D)
    down_bias: Tensor  # (R,)
    conv: Tensor  # (R, 1, K, kh, kw)
    conv_bias: Tensor  # (R,)
    up: Tensor  # (D, R)
    up_bias: Tensor  # (D,)
    dilation: Tensor | None = None  # (3, R)
    dilation_bias: Tensor | None = None  # (1,)

    def to(self, dtype: torch.dtype) -> Weights:
        """In ``dtype``, as kernels read them: contiguous, and aligned as an allocation of their own is."""
        return Weights(*(None if p is None else _alone(p, dtype) for p in self))  # type: ignore[arg-type]


def _alone(p: Tensor, dtype: torch.dtype) -> Tensor:
    if p.dtype != dtype:
        return p.to(dtype, memory_format=torch.contiguous_format)
    is_aligned = p.storage_offset() * p.element_size() % 16 == 0
    return p.contiguous() if is_aligned else p.clone(memory_format=torch.contiguous_format)


class ConvGradients(NamedTuple):
    """The gradients of the convolution's parameters, and of the bias in front of it."""

    conv: Tensor  # (R, 1, K, kh, kw)
    conv_bias: Tensor  # (R,)
    down_bias: Tensor  # (R,)
    dilation: Tensor | None  # (3, R)
    dilation_bias: Tensor | None  # (1,)


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """What an adapter computes, besides its weights."""

    dilation: tuple[int, int, int]  # (t, h, w) between taps, in frames and patches; of a dynamic adapter t is unused
    max_dilation: float | None  # in frames; of a dynamic adapter
    activation: str
    num_prefix_tokens: int
    grid_size: tuple[int, int]  # (H, W); (N, 1) where the kernel has no spatial extent
    compute_dtype: torch.dtype
    gradient_dtype: torch.dtype = torch.float32  # in which the convolution's gradients are best made: their own

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """fp32 for bf16 and fp16, else the compute dtype itself."""
        return torch.promote_types(self.compute_dtype, torch.float32)


def as_clips(x: Tensor, num_frames: int) -> Tensor:
    """(B*T, L, D) or (B, T, L, D) as the latter, a view."""
    return x if x.dim() == 4 else x.view(x.shape[0] // num_frames, num_frames, *x.shape[1:])
