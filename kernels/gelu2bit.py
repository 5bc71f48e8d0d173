"""Two-bit step codes: which of four intervals each element of an activation's input lies in, four elements a byte.

    pack       code = Σ_i [x > position_i],  i < 3;   codes[j] = Σ_k code[4j + k] << 2k
    multiply   dx = dy · value[code]

``x``, ``dy`` and ``dx`` are contiguous and flat; ``codes`` is uint8, its tail bits zero. One pass each: (s + ¼) and
(2 s + ¼) bytes an element of s bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels.common import load_f32, rounded
from fe_adapter.kernels.launch import launch
from fe_adapter.kernels.spec import ceil_div

_BLOCK = 512  # bytes of codes a program


@triton.jit
def _pack_kernel(p_x, p_codes, numel, position0, position1, position2, BLOCK: tl.constexpr):
    o_byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_slot = tl.arange(0, 4)
    o_x = o_byte[:, None] * 4 + o_slot[None, :]
    m_x = o_x < numel
    b_x = load_f32(p_x + o_x, m_x)
    b_code = (b_x > position0).to(tl.int32) + (b_x > position1).to(tl.int32) + (b_x > position2).to(tl.int32)
    b_byte = tl.sum(tl.where(m_x, b_code, 0) << (2 * o_slot)[None, :], axis=1)
    tl.store(p_codes + o_byte, b_byte.to(tl.uint8), o_byte * 4 < numel)


@triton.jit
def _multiply_kernel(p_dy, p_codes, p_dx, numel, value0, value1, value2, value3, BLOCK: tl.constexpr):
    o_byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_slot = tl.arange(0, 4)
    o_x = o_byte[:, None] * 4 + o_slot[None, :]
    m_x = o_x < numel
    b_byte = tl.load(p_codes + o_byte, o_byte * 4 < numel, 0).to(tl.int32)
    b_code = (b_byte[:, None] >> (2 * o_slot)[None, :]) & 3
    b_value = tl.where(b_code < 2, tl.where(b_code == 0, value0, value1), tl.where(b_code == 2, value2, value3))
    b_dx = load_f32(p_dy + o_x, m_x) * b_value
    tl.store(p_dx + o_x, rounded(b_dx, p_dx.dtype.element_ty), m_x)


def pack(x: Tensor, positions: Sequence[float], codes: Tensor) -> None:
    """Write the codes of the flat ``x`` into ``codes`` (ceil(numel / 4),)."""
    if len(x):
        launch(_pack_kernel, (ceil_div(len(codes), _BLOCK),), (x, codes), (len(x), *positions), {"BLOCK": _BLOCK})


def multiply(dy: Tensor, codes: Tensor, values: Sequence[float], dx: Tensor) -> None:
    """Write ``dy`` times the value that its code names into ``dx``, both flat."""
    if len(dy):
        grid = (ceil_div(len(codes), _BLOCK),)
        launch(_multiply_kernel, grid, (dy, codes, dx), (len(dy), *values), {"BLOCK": _BLOCK})
