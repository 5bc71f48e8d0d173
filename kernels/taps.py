"""Device functions of the temporal convolution, static and dynamic, for one block of rows and channels.

    c[t, n] = bc + Σ_k w[k]·h[t + k·d, n]            h, c: (B, T, N, R), one clip here
    d[t, n] = min(ELU(a) + 1, max),  a = b_δ + Σ_j W_δ[j]·h[t + j − 1, n]        (dynamic)

k counts from the tap that reads the present frame: the middle one or, CAUSAL, the last one. So does j.

A row is one patch of one frame: ``o_t`` is its frame, ``o_n`` its patch, ``m_row`` whether it is there, all (BLOCK_M,).
Channels are ``o_r`` and ``m_r``, (BLOCK_R,); values are blocks of both, [BLOCK_M, BLOCK_R]. ``h`` and everything of its
shape is contiguous. Real-valued frames are read by linear interpolation, zero outside the clip; slopes are taken from
the right, as autograd does for floor and lerp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fe_adapter.kernels.common import load_f32


class Geometry(NamedTuple):
    """Where a convolution runs, all of it known at run time alone: these travel together through every phase."""

    T: Any  # frames of a clip
    N: Any  # patches of a frame
    R: Any  # channels
    H: Any  # the patch grid
    W: Any
    dilation_t: Any  # frames between taps
    dilation_h: Any  # patches between them, down and across the grid
    dilation_w: Any


@triton.jit
def rows_at(p_h, o_t, o_n, m_row, geometry, o_r, m_r):
    """``h[o_t, o_n, o_r]`` [BLOCK_M, BLOCK_R] in fp32, zero outside the clip."""
    m_row = m_row & (o_t >= 0) & (o_t < geometry.T)
    o_row = (o_t * geometry.N + o_n) * geometry.R
    return load_f32(p_h + o_row[:, None] + o_r[None, :], m_row[:, None] & m_r[None, :])


@triton.jit
def sample(p_h, b_tau, o_n, m_row, geometry, o_r, m_r):
    """``h`` at the real-valued frames ``b_tau`` (BLOCK_M,), and its slope there, both [BLOCK_M, BLOCK_R]."""
    b_low = tl.floor(b_tau)
    o_low = tl.minimum(tl.maximum(b_low, -2.0), geometry.T + 0.0).to(tl.int32)  # any number is a safe address
    b_left = rows_at(p_h, o_low, o_n, m_row, geometry, o_r, m_r)
    b_right = rows_at(p_h, o_low + 1, o_n, m_row, geometry, o_r, m_r)
    return b_left + (b_tau - b_low)[:, None] * (b_right - b_left), b_right - b_left


@triton.jit
def predict_dilation(
    p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The dilation of every row and its slope dd/da, both (BLOCK_M,) in fp32."""
    PRESENT: tl.constexpr = 2 if CAUSAL else 1
    b_a = tl.zeros((BLOCK_M,), tl.float32) + tl.load(p_dilation_bias).to(tl.float32)
    for r0 in range(0, geometry.R, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < geometry.R
        for j in tl.static_range(3):
            b_h = rows_at(p_h, o_t + (j - PRESENT), o_n, m_row, geometry, o_r, m_r)  # [BLOCK_M, BLOCK_R]
            b_a += tl.sum(b_h * load_f32(p_dilation + j * geometry.R + o_r, m_r)[None, :], 1)
    b_d = tl.where(b_a > 0, b_a + 1, tl.exp(tl.where(b_a > 0, 0.0, b_a)))
    b_slope = tl.where(b_a > 0, 1.0, b_d)
    if HAS_MAX:
        b_slope = tl.where(b_d <= max_dilation, b_slope, 0.0)
        b_d = tl.where(b_d > max_dilation, max_dilation, b_d)
    return b_d, b_slope


@triton.jit
def shifted(o_n, m_row, i, j, geometry, KH: tl.constexpr, KW: tl.constexpr):
    """The patch ``(i, j)`` taps away on the grid, and whether it is there."""
    if KH * KW == 1:
        o_to, m_to = o_n, m_row
    else:
        o_y = o_n // geometry.W + i * geometry.dilation_h
        o_x = o_n % geometry.W + j * geometry.dilation_w
        o_to = o_y * geometry.W + o_x
        m_to = m_row & (o_y >= 0) & (o_y < geometry.H) & (o_x >= 0) & (o_x < geometry.W)
    return o_to, m_to


@triton.jit
def tap_value(
    p_h, k, i, j, b_d, o_t, o_n, m_row, geometry, o_r, m_r,
    KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr,
):  # fmt: skip
    """What tap ``(k, i, j)``, counted from that at the row itself, reads [BLOCK_M, BLOCK_R], and its slope."""
    o_to, m_to = shifted(o_n, m_row, i, j, geometry, KH, KW)
    if DYNAMIC and k != 0:
        b_value, b_slope = sample(p_h, o_t.to(tl.float32) + k * b_d, o_to, m_to, geometry, o_r, m_r)
    else:
        b_value = rows_at(p_h, o_t + k * geometry.dilation_t, o_to, m_to, geometry, o_r, m_r)
        b_slope = b_value
    return b_value, b_slope


@triton.jit
def convolve(
    p_h, p_conv, p_conv_bias, b_d, o_t, o_n, m_row, geometry, o_r, m_r,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``c`` [BLOCK_M, BLOCK_R] in fp32.

    Rows of a spatial kernel are a loop at run time, here and wherever taps are read: unrolled, the compiler would load
    all 27 of them at once and spill.
    """
    PRESENT: tl.constexpr = K - 1 if CAUSAL else K // 2
    b_c = tl.zeros((BLOCK_M, BLOCK_R), tl.float32) + load_f32(p_conv_bias + o_r, m_r)[None, :]
    for k in tl.static_range(K):
        for i in range(KH):
            for j in tl.static_range(KW):
                b_value, _ = tap_value(
                    p_h, k - PRESENT, i - KH // 2, j - KW // 2, b_d, o_t, o_n, m_row, geometry, o_r, m_r,
                    KH, KW, DYNAMIC,
                )  # fmt: skip
                b_w = load_f32(p_conv + o_r * (K * KH * KW) + (k * KH + i) * KW + j, m_r)
                b_c += b_value * b_w[None, :]
    return b_c


@triton.jit
def convolve_transposed(
    p_dc, p_conv, p_d, o_t, o_n, m_row, geometry, o_r, m_r,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """What the taps send back to every row: ``Σ_k w[k]·dc[t − k·d]``, [BLOCK_M, BLOCK_R] in fp32.

    With a dynamic dilation a row hears from every frame s whose tap reaches it, ``hat(s + k·d[s] − t)``: a loop over
    all frames, so that no two programs add to one element.
    """
    PRESENT: tl.constexpr = K - 1 if CAUSAL else K // 2
    b_dh = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for i in range(KH):
        for j in tl.static_range(KW):
            o_from, m_from = shifted(o_n, m_row, KH // 2 - i, KW // 2 - j, geometry, KH, KW)
            p_w = p_conv + o_r * (K * KH * KW) + i * KW + j
            if DYNAMIC:
                b_g = rows_at(p_dc, o_t, o_from, m_from, geometry, o_r, m_r)
                b_dh += b_g * load_f32(p_w + PRESENT * KH * KW, m_r)[None, :]
                for s in range(geometry.T):
                    o_s = o_t * 0 + s
                    b_g = rows_at(p_dc, o_s, o_from, m_from, geometry, o_r, m_r)
                    b_d = tl.load(p_d + o_s * geometry.N + o_from, m_from, 1.0)
                    for k in tl.static_range(K):
                        if k != PRESENT:
                            b_hat = 1 - tl.abs(s + (k - PRESENT) * b_d - o_t.to(tl.float32))
                            b_hat = tl.where(b_hat < 0, 0.0, b_hat)
                            b_dh += b_g * b_hat[:, None] * load_f32(p_w + k * KH * KW, m_r)[None, :]
            else:
                for k in tl.static_range(K):
                    b_g = rows_at(p_dc, o_t - (k - PRESENT) * geometry.dilation_t, o_from, m_from, geometry, o_r, m_r)
                    b_dh += b_g * load_f32(p_w + k * KH * KW, m_r)[None, :]
    return b_dh
