"""The temporal convolution as kernels of its own, for the design ``gemm``: between library products, without a copy.

    forward      rows = [φ(c) | 1 | 0 …] on patch rows, 0 on prefix rows                         c = conv(h)
    backward 1   rows again;  dc = dφ·φ'(c);  partial sums of dw = Σ dc·tap(h) and dbc = Σ dc;
                 dynamic: the dilation d, and da = slope·Σ_k k Σ_r dc·w[k]·∂tap/∂d
    backward 2   rows[…, :R] = dh = convᵀ(dc) + Σ_j W_δ[j]·da[t − j + 1];  partial sums of dh, of da·h

Each is one of `fe_adapter.kernels.phases` on rows that are found here. ``h``, ``dφ``, ``dc`` are (B, T, N, R), ``rows``
(B, T, L, R + PAD), all contiguous, made here or by ``gemm``. The extra columns and the zero prefix rows make both
products of the up-projection single GEMMs over the matrix that ``x`` is, bias included. ``h`` is read once a kernel, 3
(K) times through the cache; nothing else is saved for backward. Every element is written by one program; sums are fp32
partials, one row a program, which a last kernel (`fe_adapter.kernels.sums`) adds up: there are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels import scratch
from fe_adapter.kernels.cast import cast
from fe_adapter.kernels.launch import launch
from fe_adapter.kernels.phases import activation_step, backward_activation_step, backward_hidden_step, conv_flags
from fe_adapter.kernels.plans import conv_plan
from fe_adapter.kernels.scratch import ConvScratch
from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Rows, Weights
from fe_adapter.kernels.sums import add_sums
from fe_adapter.kernels.taps import Geometry, predict_dilation

# one compile serves all values, 1 and multiples of 16 as well
SHAPE = ("T", "N", "H", "W", "P", "dilation_t", "dilation_h", "dilation_w")


@triton.jit
def _token(i_tile, T, N, P, BLOCK_M: tl.constexpr):
    """Row in the clip's tokens, frame, patch (below 0: prefix), whether it is a token, whether it is a patch."""
    o_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_t = o_m // (P + N)
    o_n = o_m % (P + N) - P
    m_token = o_t < T
    return o_m, o_t, o_n, m_token, m_token & (o_n >= 0)


@triton.jit(do_not_specialize=SHAPE)
def _conv_fwd_kernel(
    p_h, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_rows,
    T, N, R, H, W, P, C, dilation_t, dilation_h, dilation_w, max_dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MAX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M tokens of one clip, all channels."""
    tiles = tl.cdiv(T * (P + N), BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    o_m, o_t, o_n, m_token, m_row = _token(tl.program_id(0) % tiles, T, N, P, BLOCK_M)
    p_h += i_clip * T * N * R
    geometry = Geometry(T, N, R, H, W, dilation_t, dilation_h, dilation_w)
    b_d = None
    if DYNAMIC:
        b_d, _ = predict_dilation(
            p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, CAUSAL, BLOCK_M, BLOCK_R
        )
    activation_step(
        p_h, p_conv, p_conv_bias, b_d, p_rows + i_clip * T * (P + N) * C, o_t, o_n, m_row, o_m, m_token, geometry, C,
        K, KH, KW, ACTIVATION, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_R,
    )  # fmt: skip


@triton.jit(do_not_specialize=SHAPE)
def _conv_bwd_activation_kernel(
    p_dphi, p_h, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_rows, p_dc, p_d, p_da, p_sums,
    T, N, R, H, W, P, C, dilation_t, dilation_h, dilation_w, max_dilation,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MAX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M tokens of one clip, all channels. ``p_sums``: (programs, K·KH·KW + 1, R)."""
    tiles = tl.cdiv(T * (P + N), BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    o_m, o_t, o_n, m_token, m_row = _token(tl.program_id(0) % tiles, T, N, P, BLOCK_M)
    p_h += i_clip * T * N * R
    geometry = Geometry(T, N, R, H, W, dilation_t, dilation_h, dilation_w)
    b_d = None
    if DYNAMIC:
        b_d, b_slope = predict_dilation(
            p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, CAUSAL, BLOCK_M, BLOCK_R
        )
    b_dd = backward_activation_step(
        p_dphi + i_clip * T * N * R, p_h, p_conv, p_conv_bias, b_d, p_rows + i_clip * T * (P + N) * C,
        p_dc + i_clip * T * N * R, p_sums + tl.program_id(0).to(tl.int64) * (K * KH * KW + 1) * R,
        o_t, o_n, m_row, o_m, m_token, geometry, C, K, KH, KW, ACTIVATION, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_R,
    )  # fmt: skip
    if DYNAMIC:
        o_row = i_clip * T * N + o_t * N + o_n
        tl.store(p_d + o_row, b_d, m_row)
        tl.store(p_da + o_row, b_dd * b_slope, m_row)


@triton.jit(do_not_specialize=SHAPE)
def _conv_bwd_hidden_kernel(
    p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums,
    T, N, R, H, W, P, C, dilation_t, dilation_h, dilation_w,
    K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M patches of one clip, all channels. ``p_sums``: (programs, 4, R), dynamic or not."""
    tiles = tl.cdiv(T * N, BLOCK_M)
    i_clip = (tl.program_id(0) // tiles).to(tl.int64)
    _, o_t, o_n, _, m_row = _token(tl.program_id(0) % tiles, T, N, 0, BLOCK_M)
    p_dc += i_clip * T * N * R
    p_h += i_clip * T * N * R
    if DYNAMIC:
        p_d += i_clip * T * N
        p_da += i_clip * T * N
    backward_hidden_step(
        p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh + i_clip * T * (P + N) * C,
        p_sums + tl.program_id(0).to(tl.int64) * 4 * R,
        o_t, o_n, m_row, o_t * (P + N) + P + o_n, Geometry(T, N, R, H, W, dilation_t, dilation_h, dilation_w), C,
        K, KH, KW, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_R,
    )  # fmt: skip


class KernelConvolution:
    """`fe_adapter.ops.products.Convolution` as kernels, for clips of one ``shape`` (B, T, L, D)."""

    cast = staticmethod(cast)
    reuses_rows = False  # launches of another stream may still read them

    def __init__(self, shape: torch.Size, weights: Weights, spec: AdapterSpec) -> None:
        (_, T, L, self._embed_dim), P, R = shape, spec.num_prefix_tokens, len(weights.down)
        plan = conv_plan(R, weights.conv.shape[2:])
        self._spec, self._block_rows = spec, plan.BLOCK_M
        self._numbers = T, L - P, R, *spec.grid_size, P, R + PAD, *spec.dilation
        self._max_dilation = spec.max_dilation or 0.0
        self._options = conv_flags(weights, spec) | plan.options()
        self._options_hidden = {name: value for name, value in self._options.items() if name != "HAS_MAX"}

    def rows(self, h: Tensor) -> Rows:
        return scratch.empty_rows(h, self._spec.num_prefix_tokens, self._embed_dim)

    def activate(self, h: Tensor, weights: Weights, rows: Rows) -> None:
        spec, weights = self._spec, weights.alone()
        launch(
            _conv_fwd_kernel, (scratch.token_programs(h, spec.num_prefix_tokens, self._block_rows),),
            (h, weights.conv, weights.conv_bias, weights.dilation, weights.dilation_bias, rows.matrix),
            (*self._numbers, self._max_dilation), {"ACTIVATION": spec.activation, **self._options},
        )  # fmt: skip

    def backward_activation(self, dphi: Tensor, h: Tensor, weights: Weights, rows: Rows) -> tuple[Tensor, ConvScratch]:
        """``dc`` takes the place of ``dphi``."""
        spec = self._spec
        programs = scratch.token_programs(h, spec.num_prefix_tokens, self._block_rows)
        state, weights = scratch.conv_scratch(h, weights, programs), weights.alone()
        launch(
            _conv_bwd_activation_kernel, (programs,),
            (dphi, h, weights.conv, weights.conv_bias, weights.dilation, weights.dilation_bias, rows.matrix, dphi,
             state.d, state.da, state.sums),
            (*self._numbers, self._max_dilation), {"ACTIVATION": spec.activation, **self._options},
        )  # fmt: skip
        return dphi, state

    def backward_hidden(self, dc: Tensor, h: Tensor, weights: Weights, rows: Rows, state: ConvScratch) -> ConvGradients:
        programs, weights = scratch.token_programs(h, 0, self._block_rows), weights.alone()
        sums_h = scratch.hidden_sums(h, programs)
        launch(
            _conv_bwd_hidden_kernel, (programs,),
            (dc, h, weights.conv, weights.dilation, state.d, state.da, rows.matrix, sums_h),
            self._numbers, self._options_hidden,
        )  # fmt: skip
        return add_sums(state, sums_h, weights, self._spec.gradient_dtype)
