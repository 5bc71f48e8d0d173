"""Device functions that all kernels share: rounding, products, activations, where a row is.

Names: ``i_`` program index, ``o_`` offsets, ``m_`` mask, ``b_`` block of values. Under Triton's interpreter bf16 values
are raw bits, its products are wrong and its rounding truncates; `dot` and `rounded` are right there as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_f32(p_values, mask):
    """Values in fp32, 0 where masked."""
    return tl.load(p_values, mask, 0.0).to(tl.float32)


@triton.jit
def rounded(b_x, dtype: tl.constexpr):
    """fp32 to ``dtype``, to nearest even."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = b_x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        b_x = tl.where(b_x == b_x, even.to(tl.float32, bitcast=True), b_x)  # a NaN stays one
    return b_x.to(dtype)


@triton.jit
def dot(b_a, b_b, b_acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in fp32; the operands keep their dtype for the tensor cores."""
    if INTERPRET:
        b_a = b_a.to(tl.float32)
        b_b = b_b.to(tl.float32)
    return tl.dot(b_a, b_b, b_acc, input_precision=PRECISION)


@triton.jit
def _sigmoid(b_z):
    e = tl.exp(-tl.abs(b_z))  # never overflows
    return tl.where(b_z >= 0, 1 / (1 + e), e / (1 + e))


@triton.jit
def activate(b_c, ACTIVATION: tl.constexpr):
    """φ(c) in fp32. A NaN stays one."""
    if ACTIVATION == "relu":
        b_c = tl.where(b_c < 0, 0.0, b_c)
    elif ACTIVATION == "gelu":  # the tanh form: (1 + tanh z) / 2 is sigmoid(2 z)
        b_c = b_c * _sigmoid(1.5957691216057308 * (b_c + 0.044715 * b_c * b_c * b_c))
    elif ACTIVATION == "silu":
        b_c = b_c * _sigmoid(b_c)
    return b_c


@triton.jit
def activation_slope(b_c, ACTIVATION: tl.constexpr):
    """φ'(c) in fp32."""
    if ACTIVATION == "relu":
        b_slope = tl.where(b_c > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        b_s = _sigmoid(1.5957691216057308 * (b_c + 0.044715 * b_c * b_c * b_c))
        b_slope = b_s + b_c * b_s * (1 - b_s) * 1.5957691216057308 * (1 + 0.134145 * b_c * b_c)
    elif ACTIVATION == "silu":
        b_s = _sigmoid(b_c)
        b_slope = b_s * (1 + b_c * (1 - b_s))
    else:
        b_slope = tl.full(b_c.shape, 1.0, tl.float32)
    return b_slope
