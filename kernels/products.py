"""Device functions: the two matrix products of a launch that holds a whole adapter.

A program wants its BLOCK_M rows of ``x`` and ``c`` from L2 as seldom as it can: traffic between L2 and the
multiprocessors is what a large bottleneck waits for where DRAM is fast. ``down`` reads ``x`` once for all the tiles of
``h`` that it keeps at a time; ``up`` reads ``c`` once if shared memory holds all of it (PARTS), or else once for every
tile of D. Rows are given by offsets, weights with both strides: in backward the matrices change places.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fe_adapter.kernels.common import dot, load_f32, rounded


@triton.jit
def load_rows(p_a, o_a, m_row, o_k, SIZE, dtype: tl.constexpr, EVEN: tl.constexpr):
    """``a[row, k]`` [BLOCK_M, BLOCK_K] in ``dtype``, zero where masked."""
    if EVEN:
        b_a = tl.load(p_a + o_a[:, None] + o_k[None, :], m_row[:, None], 0.0)
    else:
        b_a = tl.load(p_a + o_a[:, None] + o_k[None, :], m_row[:, None] & (o_k < SIZE)[None, :], 0.0)
    if p_a.dtype.element_ty != dtype:
        b_a = rounded(b_a.to(tl.float32), dtype)
    return b_a


@triton.jit
def load_weights(p_b, o_k, stride_b_k, K, o_n, stride_b_n, N, EVEN: tl.constexpr):
    """``b[k, n]`` [BLOCK_K, BLOCK_N], zero where masked."""
    p_tile = p_b + (o_k * stride_b_k)[:, None] + (o_n * stride_b_n)[None, :]
    return tl.load(p_tile) if EVEN else tl.load(p_tile, (o_k < K)[:, None] & (o_n < N)[None, :], 0.0)


@triton.jit
def down(
    p_x, o_x, m_row, p_kept, o_kept, p_w, stride_w_d, stride_w_r, p_bias, p_h, o_h, D, R,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    ACCUMULATORS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``h = x·w + bias``; ``x`` passes by once for every ACCUMULATORS·BLOCK_R columns, ``kept`` gets it rounded."""
    for r0 in range(0, R, ACCUMULATORS * BLOCK_R):
        b_h = ()
        for _ in tl.static_range(ACCUMULATORS):
            b_h += (tl.zeros((BLOCK_M, BLOCK_R), tl.float32),)  # type: ignore[assignment]
        for d0 in range(0, D, BLOCK_D):
            o_d = d0 + tl.arange(0, BLOCK_D)
            b_x = load_rows(p_x, o_x, m_row, o_d, D, p_w.dtype.element_ty, EVEN)
            if p_kept is not None:
                m_kept = m_row[:, None] & (o_d < D)[None, :] & (r0 == 0)
                tl.store(p_kept + o_kept[:, None] + o_d[None, :], b_x, m_kept)
            b_sums = ()
            for i in tl.static_range(ACCUMULATORS):
                o_r = r0 + i * BLOCK_R + tl.arange(0, BLOCK_R)
                b_w = load_weights(p_w, o_d, stride_w_d, D, o_r, stride_w_r, R, EVEN)
                b_sums += (dot(b_x, b_w, b_h[i], PRECISION),)  # type: ignore[assignment]
            b_h = b_sums
        for i in tl.static_range(ACCUMULATORS):
            o_r = r0 + i * BLOCK_R + tl.arange(0, BLOCK_R)
            m_r = o_r < R
            b_out = b_h[i]  # type: ignore[var-annotated]
            if BIAS:
                b_out += load_f32(p_bias + o_r, m_r)[None, :]
            b_out = rounded(b_out, p_h.dtype.element_ty)
            tl.store(p_h + o_h[:, None] + o_r[None, :], b_out, m_row[:, None] & m_r[None, :])


@triton.jit
def up(
    p_x, o_x, m_row, p_c, o_c, p_w, stride_w_r, stride_w_d, p_bias, p_y, o_y, D, R,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x + c·w + bias``, added in fp32; all of ``c`` stays, in PARTS tiles of BLOCK_K columns, or passes by."""
    b_c = ()
    for i in tl.static_range(PARTS):
        o_r = i * BLOCK_K + tl.arange(0, BLOCK_K)
        b_c += (load_rows(p_c, o_c, m_row, o_r, R, p_w.dtype.element_ty, EVEN),)  # type: ignore[assignment]
    for n0 in tl.range(0, D, BLOCK_N, num_stages=STAGES):
        o_d = n0 + tl.arange(0, BLOCK_N)
        b_y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if PARTS:
            for i in tl.static_range(PARTS):
                o_r = i * BLOCK_K + tl.arange(0, BLOCK_K)
                b_y = dot(b_c[i], load_weights(p_w, o_r, stride_w_r, R, o_d, stride_w_d, D, EVEN), b_y, PRECISION)
        else:
            for r0 in range(0, R, BLOCK_K):
                o_r = r0 + tl.arange(0, BLOCK_K)
                b_a = load_rows(p_c, o_c, m_row, o_r, R, p_w.dtype.element_ty, EVEN)
                b_y = dot(b_a, load_weights(p_w, o_r, stride_w_r, R, o_d, stride_w_d, D, EVEN), b_y, PRECISION)
        m_d = o_d < D
        m_here = m_row[:, None] & m_d[None, :]
        if BIAS:
            b_y += load_f32(p_bias + o_d, m_d)[None, :]
        b_y += load_f32(p_x + o_x[:, None] + o_d[None, :], m_here)
        tl.store(p_y + o_y[:, None] + o_d[None, :], rounded(b_y, p_y.dtype.element_ty), m_here)
