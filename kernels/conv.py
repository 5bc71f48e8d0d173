"""The temporal convolution as kernels of its own, for the design ``gemm``: between library products, without a copy.

    forward      rows = [φ(c) | 1 | 0 …] on patch rows, 0 on prefix rows                         c = conv(h)
    backward 1   rows again;  dc = dφ·φ'(c);  partial sums of dw = Σ dc·tap(h) and dbc = Σ dc;
                 dynamic: the dilation d, and da = slope·Σ_k k Σ_r dc·w[k]·∂tap/∂d
    backward 2   rows[…, :R] = dh = convᵀ(dc) + Σ_j W_δ[j]·da[t − j + 1];  partial sums of dh, of da·h

``h``, ``dφ``, ``dc`` are (B, T, N, R), ``rows`` (B, T, L, R + PAD), all contiguous, made here or by ``gemm``.
The extra columns and the zero prefix rows make both products of the up-projection single GEMMs over the matrix that
``x`` is, bias included. ``h`` is read once a kernel, 3 (K) times through the cache; nothing else is saved for backward.
Every element is written by one program; sums are fp32 partials, one row a program, which a last kernel adds up: there
are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels.common import activate, activation_slope, load_f32, rounded
from fe_adapter.kernels.plans import conv_plan, sums_plan
from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights, ceil_div
from fe_adapter.kernels.taps import convolve, convolve_transposed, predict_dilation, rows_at, tap_value

PAD_COLUMNS = tl.constexpr(PAD)


@triton.jit
def _store_rows(p_rows, b_rows, o_out, o_r, C, m_row, m_out, m_column):
    """Columns ``o_r`` of the rows ``o_out``, C wide; zeros where a row is no patch."""
    b_rows = rounded(tl.where(m_row[:, None], b_rows, 0.0), p_rows.dtype.element_ty)
    tl.store(p_rows + (o_out * C)[:, None] + o_r[None, :], b_rows, m_out[:, None] & m_column[None, :])


@triton.jit
def activation_step(
    p_h, p_conv, p_conv_bias, b_d, p_rows, o_t, o_n, m_row, o_out, m_out,
    T, N, R, H, W, C, dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write ``[φ(c) | 1 | 0 …]``, C columns, into the rows ``o_out``, and zeros where a row is no patch."""
    for r0 in range(0, C, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        b_c = convolve(
            p_h, p_conv, p_conv_bias, b_d, o_t, o_n, T, N, R, H, W, dilation, m_row, o_r, m_r, K, KH, KW, DYNAMIC,
            BLOCK_M, BLOCK_R,
        )  # fmt: skip
        b_out = tl.where(m_r[None, :], activate(b_c, ACTIVATION), (o_r == R).to(tl.float32)[None, :])
        _store_rows(p_rows, b_out, o_out, o_r, C, m_row, m_out, o_r < C)


@triton.jit
def backward_activation_step(
    p_dphi, p_h, p_conv, p_conv_bias, b_d, p_rows, p_dc, p_sums, o_t, o_n, m_row, o_out, m_out,
    T, N, R, H, W, C, dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write what `activation_step` writes, ``dc``, and the sums of dw (K·KH·KW, R) and dbc (R,) over these rows.

    Returns dd, of a dynamic dilation. Taps are read once where registers allow; before an activation, whose slope needs
    ``c``, and with a dynamic dilation twice.
    """
    READS_ONCE: tl.constexpr = ACTIVATION == "identity" and not DYNAMIC
    o_row = o_t * N + o_n
    b_dd = tl.zeros((BLOCK_M,), tl.float32)
    for r0 in range(0, R, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        m_here = m_row[:, None] & m_r[None, :]
        if READS_ONCE:
            b_c = tl.zeros((BLOCK_M, BLOCK_R), tl.float32) + load_f32(p_conv_bias + o_r, m_r)[None, :]
        else:
            b_c = convolve(
                p_h, p_conv, p_conv_bias, b_d, o_t, o_n, T, N, R, H, W, dilation, m_row, o_r, m_r, K, KH, KW, DYNAMIC,
                BLOCK_M, BLOCK_R,
            )  # fmt: skip
            _store_rows(p_rows, activate(b_c, ACTIVATION), o_out, o_r, C, m_row, m_out, m_r)
            tl.debug_barrier()  # keeps the compiler from loading the taps of both readings at once, which would spill
        b_dc = load_f32(p_dphi + (o_row * R)[:, None] + o_r[None, :], m_here)
        if not READS_ONCE:
            b_dc *= activation_slope(b_c, ACTIVATION)
        tl.store(p_dc + (o_row * R)[:, None] + o_r[None, :], rounded(b_dc, p_dc.dtype.element_ty), m_here)
        tl.store(p_sums + K * KH * KW * R + o_r, tl.sum(b_dc, 0), m_r)
        for k in tl.static_range(K):
            for i in range(KH):
                for j in tl.static_range(KW):
                    b_value, b_rise = tap_value(
                        p_h, k - K // 2, i - KH // 2, j - KW // 2, b_d, o_t, o_n, T, N, R, H, W, dilation, m_row, o_r,
                        m_r, KH, KW, DYNAMIC,
                    )  # fmt: skip
                    b_w = load_f32(p_conv + o_r * (K * KH * KW) + (k * KH + i) * KW + j, m_r)
                    if READS_ONCE:
                        b_c += b_value * b_w[None, :]
                    tl.store(p_sums + ((k * KH + i) * KW + j) * R + o_r, tl.sum(b_dc * b_value, 0), m_r)
                    if DYNAMIC and k != K // 2:
                        b_dd += (k - K // 2) * tl.sum(b_dc * b_rise * b_w[None, :], 1)
        if READS_ONCE:
            _store_rows(p_rows, b_c, o_out, o_r, C, m_row, m_out, m_r)
    o_pad = tl.arange(0, PAD_COLUMNS)
    b_pad = (o_pad == 0).to(tl.float32)[None, :]
    _store_rows(p_rows, b_pad, o_out, R + o_pad, C, m_row, m_out, o_pad < PAD_COLUMNS)
    return b_dd


@triton.jit
def backward_hidden_step(
    p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums, o_t, o_n, m_row, o_out,
    T, N, R, H, W, C, dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Write ``dh`` into the rows ``o_out`` of C columns, and the sums over these rows of dh and, dynamic, of dW_δ."""
    for r0 in range(0, R, BLOCK_R):
        o_r = r0 + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        b_dh = convolve_transposed(
            p_dc, p_conv, p_d, o_t, o_n, T, N, R, H, W, dilation, m_row, o_r, m_r, K, KH, KW, DYNAMIC, BLOCK_M, BLOCK_R
        )
        if DYNAMIC:
            b_h = rows_at(p_h, o_t, o_n, T, N, R, m_row, o_r, m_r)
            for j in tl.static_range(3):
                o_by = o_t + 1 - j  # the frame whose prediction read this one by its tap j
                b_da = load_f32(p_da + o_by * N + o_n, m_row & (o_by >= 0) & (o_by < T))
                b_dh += b_da[:, None] * load_f32(p_dilation + j * R + o_r, m_r)[None, :]
                tl.store(p_sums + (1 + j) * R + o_r, tl.sum(b_da[:, None] * b_h, 0), m_r)
        m_here = m_row[:, None] & m_r[None, :]
        tl.store(p_dh + (o_out * C)[:, None] + o_r[None, :], rounded(b_dh, p_dh.dtype.element_ty), m_here)
        tl.store(p_sums + o_r, tl.sum(tl.where(m_here, b_dh, 0.0), 0), m_r)


@triton.jit
def _token(i_tile, T, N, P, BLOCK_M: tl.constexpr):
    """Row in the clip's tokens, frame, patch (below 0: prefix), whether it is a token, whether it is a patch."""
    o_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_t = o_m // (P + N)
    o_n = o_m % (P + N) - P
    m_token = o_t < T
    return o_m, o_t, o_n, m_token, m_token & (o_n >= 0)


SHAPE = ("T", "N", "H", "W", "P", "dilation")  # one compile serves all values, 1 and multiples of 16 as well


@triton.jit(do_not_specialize=SHAPE)
def _conv_fwd_kernel(
    p_h, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_rows,
    T, N, R, H, W, P, C, dilation, max_dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    HAS_MAX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M tokens of one clip, all channels."""
    tiles = tl.cdiv(T * (P + N), BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    o_m, o_t, o_n, m_token, m_row = _token(tl.program_id(0) % tiles, T, N, P, BLOCK_M)
    p_h += i_clip * T * N * R
    b_d = o_t.to(tl.float32)
    if DYNAMIC:
        b_d, _ = predict_dilation(
            p_h, p_dilation, p_dilation_bias, o_t, o_n, T, N, R, m_row, max_dilation, HAS_MAX, BLOCK_M, BLOCK_R
        )
    activation_step(
        p_h, p_conv, p_conv_bias, b_d, p_rows + i_clip * T * (P + N) * C, o_t, o_n, m_row, o_m, m_token,
        T, N, R, H, W, C, dilation, K, KH, KW, ACTIVATION, DYNAMIC, BLOCK_M, BLOCK_R,
    )  # fmt: skip


@triton.jit(do_not_specialize=SHAPE)
def _conv_bwd_activation_kernel(
    p_dphi, p_h, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_rows, p_dc, p_d, p_da, p_sums,
    T, N, R, H, W, P, C, dilation, max_dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    HAS_MAX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M tokens of one clip, all channels. ``p_sums``: (programs, K·KH·KW + 1, R)."""
    tiles = tl.cdiv(T * (P + N), BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    o_m, o_t, o_n, m_token, m_row = _token(tl.program_id(0) % tiles, T, N, P, BLOCK_M)
    p_h += i_clip * T * N * R
    b_d = o_t.to(tl.float32)
    b_slope = b_d
    if DYNAMIC:
        b_d, b_slope = predict_dilation(
            p_h, p_dilation, p_dilation_bias, o_t, o_n, T, N, R, m_row, max_dilation, HAS_MAX, BLOCK_M, BLOCK_R
        )
    b_dd = backward_activation_step(
        p_dphi + i_clip * T * N * R, p_h, p_conv, p_conv_bias, b_d, p_rows + i_clip * T * (P + N) * C,
        p_dc + i_clip * T * N * R, p_sums + tl.program_id(0).to(tl.int64) * (K * KH * KW + 1) * R,
        o_t, o_n, m_row, o_m, m_token,
        T, N, R, H, W, C, dilation, K, KH, KW, ACTIVATION, DYNAMIC, BLOCK_M, BLOCK_R,
    )  # fmt: skip
    if DYNAMIC:
        o_row = i_clip * T * N + o_t * N + o_n
        tl.store(p_d + o_row, b_d, m_row)
        tl.store(p_da + o_row, b_dd * b_slope, m_row)


@triton.jit(do_not_specialize=SHAPE)
def _conv_bwd_hidden_kernel(
    p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums,
    T, N, R, H, W, P, C, dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M patches of one clip, all channels. ``p_sums``: (programs, 4, R), dynamic or not."""
    tiles = tl.cdiv(T * N, BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    _, o_t, o_n, _, m_row = _token(tl.program_id(0) % tiles, T, N, 0, BLOCK_M)
    backward_hidden_step(
        p_dc + i_clip * T * N * R, p_h + i_clip * T * N * R, p_conv, p_dilation, p_d + i_clip * T * N,
        p_da + i_clip * T * N, p_dh + i_clip * T * (P + N) * C, p_sums + tl.program_id(0).to(tl.int64) * 4 * R,
        o_t, o_n, m_row, o_t * (P + N) + P + o_n,
        T, N, R, H, W, C, dilation, K, KH, KW, DYNAMIC, BLOCK_M, BLOCK_R,
    )  # fmt: skip


def activated_rows(h: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``[φ(c) | 1 | 0 …]`` (B, T, L, R + PAD) in the dtype of ``h`` (B, T, N, R); see the module's text."""
    B, T, N, R = h.shape
    P, plan = spec.num_prefix_tokens, conv_plan(R, weights.conv.shape[2:])
    rows = h.new_empty(B, T, P + N, R + PAD)
    _conv_fwd_kernel[(B * ceil_div(T * (P + N), plan.BLOCK_M),)](
        h, weights.conv, weights.conv_bias, *dilation_weights(weights), rows,
        T, N, R, *spec.grid_size, P, R + PAD, spec.dilation, spec.max_dilation or 0.0,
        ACTIVATION=spec.activation, **flags(weights, spec), **plan.options(),
    )  # fmt: skip
    return rows


def backward_activation(dphi: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor, tuple]:
    """``rows`` again; ``dc`` in the place of ``dphi`` (B, T, N, R); and what `backward_hidden` wants to be given."""
    B, T, N, R = h.shape
    P, plan = spec.num_prefix_tokens, conv_plan(R, weights.conv.shape[2:])
    programs, taps = B * ceil_div(T * (P + N), plan.BLOCK_M), weights.conv[0].numel()
    rows = h.new_empty(B, T, P + N, R + PAD)
    sums = h.new_empty(programs, taps + 1, R, dtype=torch.float32)
    dynamic = weights.dilation is not None
    d, da = (h.new_empty(B, T, N, dtype=torch.float32) for _ in range(2)) if dynamic else (sums, sums)  # both aligned
    _conv_bwd_activation_kernel[(programs,)](
        dphi, h, weights.conv, weights.conv_bias, *dilation_weights(weights), rows, dphi, d, da, sums,
        T, N, R, *spec.grid_size, P, R + PAD, spec.dilation, spec.max_dilation or 0.0,
        ACTIVATION=spec.activation, **flags(weights, spec), **plan.options(),
    )  # fmt: skip
    return rows, dphi, (sums, d, da)


def backward_hidden(
    dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor, state: tuple
) -> ConvGradients:
    """Write ``dh`` into the first R columns of ``out`` (B, T, L, R + PAD); returns the other gradients."""
    B, T, N, R = h.shape
    P, plan, (sums, d, da) = spec.num_prefix_tokens, conv_plan(R, weights.conv.shape[2:]), state
    programs = B * ceil_div(T * N, plan.BLOCK_M)
    sums_h = h.new_empty(programs, 4, R, dtype=torch.float32)
    options = flags(weights, spec)
    del options["HAS_MAX"]
    _conv_bwd_hidden_kernel[(programs,)](
        dc, h, weights.conv, dilation_weights(weights)[0], d, da, out, sums_h,
        T, N, R, *spec.grid_size, P, R + PAD, spec.dilation, **options, **plan.options(),
    )  # fmt: skip
    return add_sums(sums, sums_h, da, weights, spec.gradient_dtype)


@triton.jit(do_not_specialize=("programs", "programs_h"))
def _add_sums_kernel(
    p_sums, p_sums_h, p_conv, p_conv_bias, p_down_bias, p_dilation, programs, programs_h, R,
    TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: one row of the sums, BLOCK_R channels, over all programs that left their part of it."""
    i_row = tl.program_id(1)
    o_m = tl.arange(0, BLOCK_M)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    if i_row > TAPS:
        p_sums = p_sums_h + (i_row - TAPS - 1) * R
        programs = programs_h
        stride = 4 * R
    else:
        p_sums += i_row * R
        stride = (TAPS + 1) * R
    b_sum = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for m0 in range(0, programs, BLOCK_M):
        o_row = (m0 + o_m).to(tl.int64) * stride
        b_sum += tl.load(p_sums + o_row[:, None] + o_r[None, :], (m0 + o_m < programs)[:, None] & m_r[None, :], 0.0)
    b_out = rounded(tl.sum(b_sum, 0), p_conv.dtype.element_ty)
    if i_row < TAPS:
        tl.store(p_conv + o_r * TAPS + i_row, b_out, m_r)
    elif i_row == TAPS:
        tl.store(p_conv_bias + o_r, b_out, m_r)
    elif i_row == TAPS + 1:
        tl.store(p_down_bias + o_r, b_out, m_r)
    else:
        tl.store(p_dilation + (i_row - TAPS - 2) * R + o_r, b_out, m_r)


def add_sums(sums: Tensor, sums_h: Tensor, da: Tensor, weights: Weights, dtype: torch.dtype) -> ConvGradients:
    """The second stage of the reductions: partial sums of the programs to gradients in ``dtype``."""
    (programs, rows, R), dynamic = sums.shape, weights.dilation is not None
    plan, parameters = sums_plan(), (weights.conv, weights.conv_bias, weights.down_bias)
    conv, conv_bias, down_bias = (torch.empty_like(p, dtype=dtype) for p in parameters)
    dilation = None if weights.dilation is None else torch.empty_like(weights.dilation, dtype=dtype)
    _add_sums_kernel[(ceil_div(R, plan.BLOCK_R), rows + (4 if dynamic else 1))](  # a static kernel left one of four
        sums, sums_h, conv, conv_bias, down_bias, conv if dilation is None else dilation, programs, len(sums_h), R,
        TAPS=rows - 1, **plan.options(),
    )  # fmt: skip
    return ConvGradients(conv, conv_bias, down_bias, dilation, da.sum().reshape(1) if dynamic else None)


def dilation_weights(weights: Weights) -> tuple[Tensor, Tensor]:
    """The predictor's weights; of a static adapter others in their place, which are not read."""
    if weights.dilation is None or weights.dilation_bias is None:
        return weights.conv_bias, weights.conv_bias
    return weights.dilation, weights.dilation_bias


def flags(weights: Weights, spec: AdapterSpec) -> dict[str, int | bool]:
    K, KH, KW = weights.conv.shape[2:]
    dynamic = weights.dilation is not None
    return {"K": K, "KH": KH, "KW": KW, "DYNAMIC": dynamic, "HAS_MAX": spec.max_dilation is not None}
