"""What travels between the operator and its backends: weights, gradients, and what else defines an adapter."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DESIGNS = ("fused", "gemm", "resident", "tail")  # of the Triton backend: see docs/kernels.md
CONV_ROWS = 16  # tokens of a program of the convolution, which leaves one row of partial sums
ALIGNED = 64  # elements between the beginnings of weights in one tensor: a multiple of 16 bytes
MOST_KINDS = 512  # of inputs, for which launches stay settled
PAD = 8  # columns after φ(c): one for the bias, the rest zeros that keep rows aligned


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up; `triton.cdiv` takes several microseconds."""
    return -(-a // b)


class Kept(dict):
    """What was settled for one kind of input, for the next such; of so many kinds that all must have an end."""

    _making_room = threading.Lock()  # layers may be called by several threads, and a dictionary in use cannot change

    def keep(self, key: Any, value: Any) -> Any:
        """Let ``value`` stay, and the oldest leave if there are too many."""
        with self._making_room:
            while len(self) >= MOST_KINDS:
                self.pop(next(iter(self)), None)
            self[key] = value
        return value


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
        return Weights(*(None if p is None else _cast(p, dtype) for p in self))  # type: ignore[arg-type]

    def alone(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Weights:
        """As kernels read them, see `alone`; this very object, if they are so already."""
        dtype, device = dtype or self.down.dtype, device or self.down.device
        found = [None if p is None else alone(p, dtype, device) for p in self]
        return self if all(map(operator.is_, found, self)) else as_weights(found)

    def flat_starts(self) -> list[int]:
        """Where each begins, in elements, if all are in one flat tensor; and, last, where that ends."""
        sizes = (0 if p is None else ceil_div(p.numel(), ALIGNED) * ALIGNED for p in self)
        return list(itertools.accumulate(sizes, initial=0))

    def views(self, flat: Tensor | None) -> Weights:
        """Weights of these shapes, as they lie in ``flat``; without it, these."""
        if flat is None:
            return self
        parts = zip(self.flat_starts(), self, strict=False)
        return Weights(*(None if p is None else flat[i : i + p.numel()].view(p.shape) for i, p in parts))  # type: ignore[arg-type]


as_weights: Callable[[Iterable[Any]], Weights] = functools.partial(tuple.__new__, Weights)  # in half the time


def alone(t: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``t`` as kernels read memory: contiguous, aligned, not lazily negated; itself, if it is that already."""
    if t.dtype == dtype and t.device == device and t.is_contiguous() and t.data_ptr() % 16 == 0 and not t.is_neg():
        return t
    return t.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def _cast(p: Tensor, dtype: torch.dtype) -> Tensor:  # `alone` where tensors may be fake and have no address
    if p.dtype != dtype:
        return p.to(dtype, memory_format=torch.contiguous_format)
    is_aligned = p.storage_offset() * p.element_size() % 16 == 0
    return p.contiguous() if is_aligned else p.clone(memory_format=torch.contiguous_format)


Layout = tuple[Any, ...] | None


def layout_of(t: Tensor | None) -> Layout:
    """What a launch settles of a tensor: all but its values and where exactly it is."""
    return None if t is None else (t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % 16)


class Rows:
    """``[φ(c) | 1 | 0 …]`` (B*T*L, R + PAD) and its parts, as products read them; ``dh`` takes the place of φ(c)."""

    def __init__(self, matrix: Tensor, embed_dim: int) -> None:
        M, C = matrix.shape
        R, start = C - PAD, matrix.storage_offset()
        self.matrix = matrix
        self.dh = matrix.as_strided((M, R), (C, 1), start)
        self.dh_columns = matrix.as_strided((R, M), (1, C), start)
        pad = matrix if M else matrix.new_zeros(1, C)  # of which one zero is as good as many
        self.zeros = pad.as_strided((embed_dim, PAD - 1), (0, 0), pad.storage_offset() + R + 1)


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
    gradient_dtype: torch.dtype = torch.float32  # in which the gradients are best made: that of the weights
    causal: bool = False  # taps read the present frame and earlier ones alone

    def present(self, num_taps: int) -> int:
        """Which of ``num_taps`` taps in time reads the present frame."""
        return num_taps - 1 if self.causal else num_taps // 2

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """fp32 for bf16 and fp16, else the compute dtype itself."""
        return torch.promote_types(self.compute_dtype, torch.float32)


def as_clips(x: Tensor, num_frames: int) -> Tensor:
    """(B*T, L, D) or (B, T, L, D) as the latter, a view."""
    return x if x.dim() == 4 else x.view(x.shape[0] // num_frames, num_frames, *x.shape[1:])
