"""Device functions: the phases of an adapter between its two products, which every design strings together.

    forward      rows = [φ(c) | 1 | 0 …],   c = conv(h)
    backward 1   rows again;  dc = dφ·φ'(c);  partial sums of dw = Σ dc·tap(h) and dbc = Σ dc;  dynamic: dd
    backward 2   dh = convᵀ(dc) + Σ_j W_δ[j]·da[t − j + 1];  partial sums of dh, of da·h

A phase is given the rows of one program (see `fe_adapter.kernels.taps`) and goes through all channels, BLOCK_R at a
time. It writes its own elements alone; its sums over those rows are one fp32 row a program, which
`fe_adapter.kernels.sums` adds up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fe_adapter.kernels.common import activate, activation_slope, load_f32, rounded
from fe_adapter.kernels.spec import PAD, AdapterSpec, Weights
from fe_adapter.kernels.taps import convolve, convolve_transposed, rows_at, tap_value

PAD_COLUMNS = tl.constexpr(PAD)


@triton.jit
def _store_rows(p_rows, b_rows, o_out, o_r, C, m_row, m_out, m_column):
    """Columns ``o_r`` of the rows ``o_out``, C wide; zeros where a row is no patch."""
    b_rows = rounded(tl.where(m_row[:, None], b_rows, 0.0), p_rows.dtype.element_ty)  # [BLOCK_M, BLOCK_R]
    tl.store(p_rows + (o_out * C)[:, None] + o_r[None, :], b_rows, m_out[:, None] & m_column[None, :])


@triton.jit
def activation_step(
    p_h, p_conv, p_conv_bias, b_d, p_rows, o_t, o_n, m_row, o_out, m_out, geometry, C,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write ``[φ(c) | 1 | 0 …]``, C columns, into the rows ``o_out``, and zeros where a row is no patch."""
    for r0 in range(0, C, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < geometry.R
        b_c = convolve(
            p_h, p_conv, p_conv_bias, b_d, o_t, o_n, m_row, geometry, o_r, m_r, K, KH, KW, DYNAMIC, CAUSAL,
            BLOCK_M, BLOCK_R,
        )  # fmt: skip
        b_out = tl.where(m_r[None, :], activate(b_c, ACTIVATION), (o_r == geometry.R).to(tl.float32)[None, :])
        _store_rows(p_rows, b_out, o_out, o_r, C, m_row, m_out, o_r < C)


@triton.jit
def backward_activation_step(
    p_dphi, p_h, p_conv, p_conv_bias, b_d, p_rows, p_dc, p_sums, o_t, o_n, m_row, o_out, m_out, geometry, C,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write what `activation_step` writes, ``dc``, and the sums of dw (K·KH·KW, R) and dbc (R,) over these rows.

    Returns dd (BLOCK_M,), of a dynamic dilation. Taps are read once where registers allow; before an activation, whose
    slope needs ``c``, and with a dynamic dilation twice.
    """
    PRESENT: tl.constexpr = K - 1 if CAUSAL else K // 2  # the tap that reads the present frame
    READS_ONCE: tl.constexpr = ACTIVATION == "identity" and not DYNAMIC
    R = geometry.R
    o_row = o_t * geometry.N + o_n
    b_dd = tl.zeros((BLOCK_M,), tl.float32)
    for r0 in range(0, R, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        m_here = m_row[:, None] & m_r[None, :]
        if READS_ONCE:
            b_c = tl.zeros((BLOCK_M, BLOCK_R), tl.float32) + load_f32(p_conv_bias + o_r, m_r)[None, :]
        else:
            b_c = convolve(
                p_h, p_conv, p_conv_bias, b_d, o_t, o_n, m_row, geometry, o_r, m_r, K, KH, KW, DYNAMIC, CAUSAL,
                BLOCK_M, BLOCK_R,
            )  # fmt: skip
            _store_rows(p_rows, activate(b_c, ACTIVATION), o_out, o_r, C, m_row, m_out, m_r)
            tl.debug_barrier()  # keeps the compiler from loading the taps of both readings at once, which would spill
        b_dc = load_f32(p_dphi + (o_row * R)[:, None] + o_r[None, :], m_here)  # [BLOCK_M, BLOCK_R]
        if not READS_ONCE:
            b_dc *= activation_slope(b_c, ACTIVATION)
        tl.store(p_dc + (o_row * R)[:, None] + o_r[None, :], rounded(b_dc, p_dc.dtype.element_ty), m_here)
        tl.store(p_sums + K * KH * KW * R + o_r, tl.sum(b_dc, 0), m_r)
        for k in tl.static_range(K):
            for i in range(KH):
                for j in tl.static_range(KW):
                    b_value, b_rise = tap_value(
                        p_h, k - PRESENT, i - KH // 2, j - KW // 2, b_d, o_t, o_n, m_row, geometry, o_r, m_r,
                        KH, KW, DYNAMIC,
                    )  # fmt: skip
                    b_w = load_f32(p_conv + o_r * (K * KH * KW) + (k * KH + i) * KW + j, m_r)  # (BLOCK_R,)
                    if READS_ONCE:
                        b_c += b_value * b_w[None, :]
                    tl.store(p_sums + ((k * KH + i) * KW + j) * R + o_r, tl.sum(b_dc * b_value, 0), m_r)
                    if DYNAMIC and k != PRESENT:
                        b_dd += (k - PRESENT) * tl.sum(b_dc * b_rise * b_w[None, :], 1)
        if READS_ONCE:
            _store_rows(p_rows, b_c, o_out, o_r, C, m_row, m_out, m_r)
    o_pad = tl.arange(0, PAD_COLUMNS)
    b_pad = (o_pad == 0).to(tl.float32)[None, :]  # the column of ones, then zeros
    _store_rows(p_rows, b_pad, o_out, R + o_pad, C, m_row, m_out, o_pad < PAD_COLUMNS)
    return b_dd


@triton.jit
def backward_hidden_step(
    p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums, o_t, o_n, m_row, o_out, geometry, C,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write ``dh`` into the rows ``o_out`` of C columns, and the sums over these rows of dh and, dynamic, of dW_δ."""
    T, N, R = geometry.T, geometry.N, geometry.R
    PRESENT: tl.constexpr = 2 if CAUSAL else 1  # the tap that predicts by the present frame
    for r0 in range(0, R, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        b_dh = convolve_transposed(
            p_dc, p_conv, p_d, o_t, o_n, m_row, geometry, o_r, m_r, K, KH, KW, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_R
        )  # [BLOCK_M, BLOCK_R]
        if DYNAMIC:
            b_h = rows_at(p_h, o_t, o_n, m_row, geometry, o_r, m_r)
            for j in tl.static_range(3):
                o_by = o_t + PRESENT - j  # the frame whose prediction read this one by its tap j
                b_da = load_f32(p_da + o_by * N + o_n, m_row & (o_by >= 0) & (o_by < T))  # (BLOCK_M,)
                b_dh += b_da[:, None] * load_f32(p_dilation + j * R + o_r, m_r)[None, :]
                tl.store(p_sums + (1 + j) * R + o_r, tl.sum(b_da[:, None] * b_h, 0), m_r)
        m_here = m_row[:, None] & m_r[None, :]
        tl.store(p_dh + (o_out * C)[:, None] + o_r[None, :], rounded(b_dh, p_dh.dtype.element_ty), m_here)
        tl.store(p_sums + o_r, tl.sum(tl.where(m_here, b_dh, 0.0), 0), m_r)


def conv_flags(weights: Weights, spec: AdapterSpec) -> dict[str, int | bool]:
    """What a launch compiles in of a convolution, besides its activation."""
    K, KH, KW = weights.conv.shape[2:]
    dynamic = weights.dilation is not None
    flags = {"K": K, "KH": KH, "KW": KW, "DYNAMIC": dynamic, "CAUSAL": spec.causal}
    return flags | {"HAS_MAX": spec.max_dilation is not None}
