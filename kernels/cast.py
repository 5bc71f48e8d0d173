"""All weights of an adapter in the compute dtype, one behind the other in one allocation, by one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels.common import rounded
from fe_adapter.kernels.launch import Launch
from fe_adapter.kernels.scratch import settled_empty
from fe_adapter.kernels.spec import Kept, Weights, ceil_div, layout_of

_BLOCK = 1024
_kept = Kept()


@triton.jit
def _of_part(p_part, b_all, o, start, size):
    """``b_all``, where ``o`` is in the part that begins at ``start`` with that part's values instead."""
    m_part = (o >= start) & (o < start + size)
    return tl.where(m_part, tl.load(p_part + (o - start), m_part, 0.0).to(tl.float32), b_all)


@triton.jit
def _cast_kernel(
    p_down, p_down_bias, p_conv, p_conv_bias, p_up, p_up_bias, p_dilation, p_dilation_bias, p_out,
    start1, start2, start3, start4, start5, start6, start7, end,
    n0, n1, n2, n3, n4, n5, n6, n7,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = _of_part(p_down, tl.zeros((BLOCK,), tl.float32), o, 0, n0)
    b = _of_part(p_down_bias, b, o, start1, n1)
    b = _of_part(p_conv, b, o, start2, n2)
    b = _of_part(p_conv_bias, b, o, start3, n3)
    b = _of_part(p_up, b, o, start4, n4)
    b = _of_part(p_up_bias, b, o, start5, n5)
    if p_dilation is not None:
        b = _of_part(p_dilation, b, o, start6, n6)
        b = _of_part(p_dilation_bias, b, o, start7, n7)
    tl.store(p_out + o, rounded(b, p_out.dtype.element_ty), o < end)


class Cast:
    """Weights like ``weights``, in ``dtype``."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        *starts, numel = weights.flat_starts()
        self._offsets = [
            None if p is None else start * dtype.itemsize for start, p in zip(starts, weights, strict=True)
        ]
        sizes = (0 if p is None else p.numel() for p in weights)
        grid = (ceil_div(numel, _BLOCK),)
        self._launch = Launch(_cast_kernel, grid, (*starts[1:], numel, *sizes), {"BLOCK": _BLOCK})
        self._empty = settled_empty((numel,), dtype, weights.down.device)

    def __call__(self, weights: Weights) -> Tensor:
        """All of them, flat: see `Weights.views`."""
        flat = self._empty()
        self._launch(*weights, flat)
        return flat

    def addresses(self, flat: Tensor) -> list[int | None]:
        """Where each of them begins."""
        first = flat.data_ptr()
        return [None if offset is None else first + offset for offset in self._offsets]


def cast(weights: Weights, dtype: torch.dtype) -> Tensor:
    """All weights in ``dtype``, flat: see `Weights.views`."""
    key = _cast_kernel, dtype, *map(layout_of, weights)
    kept = _kept.get(key) or _kept.keep(key, Cast(weights, dtype))
    return kept(weights.alone())
