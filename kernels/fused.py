"""The whole adapter in one launch forward and one backward, static or dynamic in time.

    forward      down: h = x·Wdᵀ + bd  |  conv: c = φ(conv(h))  |  up: y = x + c·Wuᵀ + bu
    backward     dφ = dy·Wu  |  rows = [φ(c) | 1 | 0 …], dc, sums  |  dh = convᵀ(dc), sums  |  dx = dy + dh·Wd

Three designs, which differ in how the two matrix products are made:

    fused       operands pass by in loops over R and D (`fe_adapter.kernels.products`): one compile serves all sizes
    resident    c stays in shared memory and passes by once, x once or twice: R is compiled in, in steps
    tail        down (dφ) is a library product, made by the caller; the rest is one launch, as in ``resident``

``x``, ``dy`` are (B, T, L, D) with any strides but the last; the rest is made here and contiguous. A program owns all T
frames of BLOCK_M // T patches of one clip, so the phases (between the bars) hand ``h``, ``c``, ``dc`` and ``dh`` over
through global memory, that is L1 and L2, with a block barrier in between. One program more per clip copies the prefix
tokens. ``h`` is stored for backward anyway; ``c`` is scratch. DRAM traffic forward: x, y and h once. Weight gradients
are library products of what backward leaves in ``rows`` and ``dh``, both over all L tokens with zero prefix rows. The
convolution's phases are those of `fe_adapter.kernels.phases`. Sums are fp32 partials, one row a program, which a last
kernel (`fe_adapter.kernels.sums`) adds up: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels import scratch
from fe_adapter.kernels.phases import activation_step, backward_activation_step, backward_hidden_step, conv_flags
from fe_adapter.kernels.plans import launch_plan, precision
from fe_adapter.kernels.products import down, up
from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights, ceil_div
from fe_adapter.kernels.sums import add_sums
from fe_adapter.kernels.taps import Geometry, predict_dilation

SHAPE = ("tiles", "T", "N", "P", "dilation")  # one compile serves all values, T = 1 and N = 256 as well


@triton.jit
def _copy_prefix(p_x, stride_x_t, stride_x_l, p_y, T, L, P, D, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The prefix tokens of one clip, bit for bit; ``y`` is contiguous."""
    for m0 in range(0, T * P, BLOCK_M):
        o_m = m0 + tl.arange(0, BLOCK_M)
        o_t = o_m // P
        o_l = o_m % P
        for n0 in range(0, D, BLOCK_N):
            o_d = n0 + tl.arange(0, BLOCK_N)
            m = (o_m < T * P)[:, None] & (o_d < D)[None, :]
            b_x = tl.load(p_x + (o_t * stride_x_t + o_l * stride_x_l)[:, None] + o_d[None, :], m)
            tl.store(p_y + ((o_t * L + o_l) * D)[:, None] + o_d[None, :], b_x, m)


@triton.jit
def _zero_prefix(p_rows, T, L, P, C, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Zeros in the prefix rows of one clip's ``rows`` (T, L, C)."""
    for m0 in range(0, T * P, BLOCK_M):
        o_m = m0 + tl.arange(0, BLOCK_M)
        o_row = ((o_m // P) * L + o_m % P) * C
        for n0 in range(0, C, BLOCK_N):
            o_c = n0 + tl.arange(0, BLOCK_N)
            b_zero = tl.zeros((BLOCK_M, BLOCK_N), p_rows.dtype.element_ty)
            tl.store(p_rows + o_row[:, None] + o_c[None, :], b_zero, (o_m < T * P)[:, None] & (o_c < C)[None, :])


@triton.jit
def _own_rows(i_tile, T, N, BLOCK_M: tl.constexpr):
    """Frame and patch of every row, and whether it is there: all frames of BLOCK_M // T patches."""
    o_m = tl.arange(0, BLOCK_M)
    per_tile = BLOCK_M // T
    o_n = i_tile * per_tile + o_m // T
    return o_m % T, o_n, (o_m < per_tile * T) & (o_n < N)


@triton.jit(do_not_specialize=SHAPE)
def _fused_fwd_kernel(
    p_x, p_down, p_down_bias, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_up, p_up_bias, p_y, p_h, p_c,
    tiles, T, N, P, D, R, stride_x_b, stride_x_t, stride_x_l, dilation, max_dilation,
    K: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, HAS_MAX: tl.constexpr, HAS_DOWN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, ACCUMULATORS: tl.constexpr, PARTS: tl.constexpr, UP_STAGES: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_clip = (tl.program_id(0) // (tiles + 1)).to(tl.int64)
    i_tile = tl.program_id(0) % (tiles + 1)
    L = P + N
    p_x += i_clip * stride_x_b
    p_y += i_clip * T * L * D
    if i_tile == tiles:
        _copy_prefix(p_x, stride_x_t, stride_x_l, p_y, T, L, P, D, BLOCK_M, BLOCK_N)
    else:
        p_h += i_clip * T * N * R
        p_c += i_clip * T * N * R
        o_t, o_n, m_row = _own_rows(i_tile, T, N, BLOCK_M)
        o_x = o_t * stride_x_t + (P + o_n) * stride_x_l
        o_row = o_t * N + o_n
        if HAS_DOWN:
            down(
                p_x, o_x, m_row, p_down, 1, D, p_down_bias, p_h, o_row * R, D, R,
                True, BLOCK_M, BLOCK_D, BLOCK_R, ACCUMULATORS, EVEN, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        geometry = Geometry(T, N, R, N, 1, dilation, 1, 1)
        b_d = None
        if DYNAMIC:
            b_d, _ = predict_dilation(
                p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, BLOCK_M, BLOCK_S
            )
        activation_step(
            p_h, p_conv, p_conv_bias, b_d, p_c, o_t, o_n, m_row, o_row, m_row, geometry, R,
            K, 1, 1, ACTIVATION, DYNAMIC, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        tl.debug_barrier()
        up(
            p_x, o_x, m_row, p_c, o_row * R, p_up, 1, R, p_up_bias, p_y, (o_t * L + P + o_n) * D, D, R,
            True, BLOCK_M, BLOCK_N, BLOCK_K, PARTS, UP_STAGES, EVEN, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=SHAPE)
def _fused_bwd_kernel(
    p_dy, p_down, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_up, p_h, p_dx, p_dc, p_rows, p_dh, p_d, p_da,
    p_sums, p_sums_h,
    tiles, T, N, P, D, R, C, stride_dy_b, stride_dy_t, stride_dy_l, dilation, max_dilation,
    K: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, HAS_MAX: tl.constexpr, HAS_DOWN: tl.constexpr,
    NEEDS_DX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, ACCUMULATORS: tl.constexpr, PARTS: tl.constexpr, UP_STAGES: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_clip = (tl.program_id(0) // (tiles + 1)).to(tl.int64)
    i_tile = tl.program_id(0) % (tiles + 1)
    L = P + N
    p_dy += i_clip * stride_dy_b
    if NEEDS_DX:
        p_dx += i_clip * T * L * D
    p_rows += i_clip * T * L * C
    p_dh += i_clip * T * L * R
    p_dc += i_clip * T * N * R
    if i_tile == tiles:
        _zero_prefix(p_rows, T, L, P, C, BLOCK_M, BLOCK_S)
        _zero_prefix(p_dh, T, L, P, R, BLOCK_M, BLOCK_S)
        if NEEDS_DX:
            _copy_prefix(p_dy, stride_dy_t, stride_dy_l, p_dx, T, L, P, D, BLOCK_M, BLOCK_N)
    else:
        o_t, o_n, m_row = _own_rows(i_tile, T, N, BLOCK_M)
        o_dy = o_t * stride_dy_t + (P + o_n) * stride_dy_l
        o_row = o_t * N + o_n
        o_token = o_t * L + P + o_n
        if HAS_DOWN:
            down(
                p_dy, o_dy, m_row, p_up, R, 1, None, p_dc, o_row * R, D, R,
                False, BLOCK_M, BLOCK_D, BLOCK_R, ACCUMULATORS, EVEN, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        i_program = i_clip * tiles + i_tile
        p_h += i_clip * T * N * R
        geometry = Geometry(T, N, R, N, 1, dilation, 1, 1)
        b_d = None
        if DYNAMIC:
            p_d += i_clip * T * N
            p_da += i_clip * T * N
            b_d, b_slope = predict_dilation(
                p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, BLOCK_M, BLOCK_S
            )
        b_dd = backward_activation_step(
            p_dc, p_h, p_conv, p_conv_bias, b_d, p_rows, p_dc, p_sums + i_program * (K + 1) * R,
            o_t, o_n, m_row, o_token, m_row, geometry, C, K, 1, 1, ACTIVATION, DYNAMIC, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        if DYNAMIC:
            tl.store(p_d + o_row, b_d, m_row)
            tl.store(p_da + o_row, b_dd * b_slope, m_row)
        tl.debug_barrier()
        backward_hidden_step(
            p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums_h + i_program * 4 * R, o_t, o_n, m_row, o_token,
            geometry, R, K, 1, 1, DYNAMIC, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        if NEEDS_DX:
            tl.debug_barrier()
            up(
                p_dy, o_dy, m_row, p_dh, o_token * R, p_down, D, 1, None, p_dx, o_token * D, D, R,
                False, BLOCK_M, BLOCK_N, BLOCK_K, PARTS, UP_STAGES, EVEN, PRECISION,
            )  # fmt: skip


def forward(x: Tensor, h: Tensor | None, weights: Weights, spec: AdapterSpec, design: str) -> tuple[Tensor, Tensor]:
    """``y`` (B, T, L, D) in the dtype of ``x``, and ``h`` (B, T, N, R) in that of the weights, or the one given."""
    B, T, L, D = x.shape
    N, R = L - spec.num_prefix_tokens, weights.down.shape[0]
    plan = launch_plan(design, x, weights.down.dtype, R)
    tiles, has_down = ceil_div(N, plan.BLOCK_M // T), h is None
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = weights.down.new_empty(B, T, N, R) if h is None else h
    c = torch.empty_like(h)
    _fused_fwd_kernel[(B * (tiles + 1),)](
        x, weights.down, weights.down_bias, weights.conv, weights.conv_bias, weights.dilation, weights.dilation_bias,
        weights.up, weights.up_bias, y, h, c,
        tiles, T, N, L - N, D, R, *x.stride()[:3], spec.dilation[0], spec.max_dilation or 0.0,
        ACTIVATION=spec.activation, **_time_flags(weights, spec), HAS_DOWN=has_down, PRECISION=precision(),
        **plan.options(D, R, weights.conv.shape[2], backward=False),
    )  # fmt: skip
    return y, h


def backward(
    dy: Tensor, dphi: Tensor | None, h: Tensor, weights: Weights, spec: AdapterSpec, needs_dx: bool, design: str
) -> tuple[Tensor | None, Tensor, Tensor, ConvGradients]:
    """``dx`` like ``dy`` (B, T, L, D); ``rows`` (B, T, L, R + PAD) and ``dh`` (B, T, L, R), whose products are the
    gradients of the projections; and the other gradients. ``dphi`` is computed if not given, else overwritten."""
    B, T, L, D = dy.shape
    N, R, plan = L - spec.num_prefix_tokens, h.shape[-1], launch_plan(design, dy, h.dtype, h.shape[-1])
    tiles = ceil_div(N, plan.BLOCK_M // T)
    dx = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device) if needs_dx else None
    dc = torch.empty_like(h) if dphi is None else dphi
    rows, dh = scratch.activated_rows(h, spec), h.new_empty(B, T, L, R)
    state, sums_h = scratch.conv_scratch(h, weights, B * tiles), scratch.hidden_sums(h, B * tiles)
    _fused_bwd_kernel[(B * (tiles + 1),)](
        dy, weights.down, weights.conv, weights.conv_bias, weights.dilation, weights.dilation_bias, weights.up, h,
        dx, dc, rows, dh, state.d, state.da, state.sums, sums_h,
        tiles, T, N, L - N, D, R, R + PAD, *dy.stride()[:3], spec.dilation[0], spec.max_dilation or 0.0,
        ACTIVATION=spec.activation, NEEDS_DX=needs_dx, **_time_flags(weights, spec), HAS_DOWN=dphi is None,
        PRECISION=precision(), **plan.options(D, R, weights.conv.shape[2], backward=True),
    )  # fmt: skip
    return dx, rows, dh, add_sums(state, sums_h, weights, spec.gradient_dtype)


def _time_flags(weights: Weights, spec: AdapterSpec) -> dict[str, int | bool]:
    return {name: value for name, value in conv_flags(weights, spec).items() if name not in ("KH", "KW")}
