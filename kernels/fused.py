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

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels.cast import Cast
from fe_adapter.kernels.common import rounded
from fe_adapter.kernels.launch import Launch, is_hooked
from fe_adapter.kernels.phases import activation_step, backward_activation_step, backward_hidden_step, conv_flags
from fe_adapter.kernels.plans import launch_plan, precision
from fe_adapter.kernels.products import down, up
from fe_adapter.kernels.scratch import Layout, settled_empty, view_of_whole
from fe_adapter.kernels.spec import PAD, AdapterSpec, Weights, as_weights, ceil_div
from fe_adapter.kernels.sums import _add_sums_kernel
from fe_adapter.kernels.sums import sizes as sums_sizes
from fe_adapter.kernels.taps import Geometry, predict_dilation

SHAPE = ("tiles", "T", "N", "P", "dilation")  # one compile serves all values, T = 1 and N = 256 as well


@triton.jit
def _copy_prefix(p_x, stride_x_t, stride_x_l, p_y, p_kept, T, L, P, D, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The prefix tokens of one clip, bit for bit; and rounded, if they are kept. ``y`` and ``kept`` are contiguous."""
    for m0 in range(0, T * P, BLOCK_M):
        o_m = m0 + tl.arange(0, BLOCK_M)
        o_t = o_m // P
        o_l = o_m % P
        for n0 in range(0, D, BLOCK_N):
            o_d = n0 + tl.arange(0, BLOCK_N)
            m = (o_m < T * P)[:, None] & (o_d < D)[None, :]
            b_x = tl.load(p_x + (o_t * stride_x_t + o_l * stride_x_l)[:, None] + o_d[None, :], m)
            o_y = ((o_t * L + o_l) * D)[:, None] + o_d[None, :]
            tl.store(p_y + o_y, b_x, m)
            if p_kept is not None:
                tl.store(p_kept + o_y, rounded(b_x.to(tl.float32), p_kept.dtype.element_ty), m)


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
    p_kept,
    tiles, T, N, P, D, R, stride_x_b, stride_x_t, stride_x_l, dilation, max_dilation,
    K: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr, HAS_MAX: tl.constexpr,
    HAS_DOWN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, ACCUMULATORS: tl.constexpr, PARTS: tl.constexpr, UP_STAGES: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_clip = (tl.program_id(0) // (tiles + 1)).to(tl.int64)
    i_tile = tl.program_id(0) % (tiles + 1)
    L = P + N
    p_x += i_clip * stride_x_b
    p_y += i_clip * T * L * D
    if p_kept is not None:
        p_kept += i_clip * T * L * D
    if i_tile == tiles:
        _copy_prefix(p_x, stride_x_t, stride_x_l, p_y, p_kept, T, L, P, D, BLOCK_M, BLOCK_N)
    else:
        p_h += i_clip * T * N * R
        p_c += i_clip * T * N * R
        o_t, o_n, m_row = _own_rows(i_tile, T, N, BLOCK_M)
        o_x = o_t * stride_x_t + (P + o_n) * stride_x_l
        o_y = (o_t * L + P + o_n) * D
        o_row = o_t * N + o_n
        if HAS_DOWN:
            down(
                p_x, o_x, m_row, p_kept, o_y, p_down, 1, D, p_down_bias, p_h, o_row * R, D, R,
                True, BLOCK_M, BLOCK_D, BLOCK_R, ACCUMULATORS, EVEN, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        geometry = Geometry(T, N, R, N, 1, dilation, 1, 1)
        b_d = None
        if DYNAMIC:
            b_d, _ = predict_dilation(
                p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, CAUSAL,
                BLOCK_M, BLOCK_S,
            )  # fmt: skip
        activation_step(
            p_h, p_conv, p_conv_bias, b_d, p_c, o_t, o_n, m_row, o_row, m_row, geometry, R,
            K, 1, 1, ACTIVATION, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        tl.debug_barrier()
        up(
            p_x, o_x, m_row, p_c, o_row * R, p_up, 1, R, p_up_bias, p_y, o_y, D, R,
            True, BLOCK_M, BLOCK_N, BLOCK_K, PARTS, UP_STAGES, EVEN, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=SHAPE)
def _fused_bwd_kernel(
    p_dy, p_down, p_conv, p_conv_bias, p_dilation, p_dilation_bias, p_up, p_h, p_dx, p_dc, p_rows, p_dh, p_d, p_da,
    p_sums, p_sums_h, p_kept,
    tiles, T, N, P, D, R, C, stride_dy_b, stride_dy_t, stride_dy_l, dilation, max_dilation,
    K: tl.constexpr, ACTIVATION: tl.constexpr, DYNAMIC: tl.constexpr, CAUSAL: tl.constexpr, HAS_MAX: tl.constexpr,
    HAS_DOWN: tl.constexpr, NEEDS_DX: tl.constexpr,
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
    if p_kept is not None:
        p_kept += i_clip * T * L * D
    p_rows += i_clip * T * L * C
    p_dh += i_clip * T * L * R
    p_dc += i_clip * T * N * R
    if i_tile == tiles:
        _zero_prefix(p_rows, T, L, P, C, BLOCK_M, BLOCK_S)
        _zero_prefix(p_dh, T, L, P, R, BLOCK_M, BLOCK_S)
        if NEEDS_DX:
            _copy_prefix(p_dy, stride_dy_t, stride_dy_l, p_dx, p_kept, T, L, P, D, BLOCK_M, BLOCK_N)
        elif p_kept is not None:
            _zero_prefix(p_kept, T, L, P, D, BLOCK_M, BLOCK_N)
    else:
        o_t, o_n, m_row = _own_rows(i_tile, T, N, BLOCK_M)
        o_dy = o_t * stride_dy_t + (P + o_n) * stride_dy_l
        o_row = o_t * N + o_n
        o_token = o_t * L + P + o_n
        if HAS_DOWN:
            down(
                p_dy, o_dy, m_row, p_kept, o_token * D, p_up, R, 1, None, p_dc, o_row * R, D, R,
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
                p_h, p_dilation, p_dilation_bias, o_t, o_n, m_row, geometry, max_dilation, HAS_MAX, CAUSAL,
                BLOCK_M, BLOCK_S,
            )  # fmt: skip
        b_dd = backward_activation_step(
            p_dc, p_h, p_conv, p_conv_bias, b_d, p_rows, p_dc, p_sums + i_program * (K + 1) * R,
            o_t, o_n, m_row, o_token, m_row, geometry, C, K, 1, 1, ACTIVATION, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        if DYNAMIC:
            tl.store(p_d + o_row, b_d, m_row)
            tl.store(p_da + o_row, b_dd * b_slope, m_row)
        tl.debug_barrier()
        backward_hidden_step(
            p_dc, p_h, p_conv, p_dilation, p_d, p_da, p_dh, p_sums_h + i_program * 4 * R, o_t, o_n, m_row, o_token,
            geometry, R, K, 1, 1, DYNAMIC, CAUSAL, BLOCK_M, BLOCK_S,
        )  # fmt: skip
        if NEEDS_DX:
            tl.debug_barrier()
            up(
                p_dy, o_dy, m_row, p_dh, o_token * R, p_down, D, 1, None, p_dx, o_token * D, D, R,
                False, BLOCK_M, BLOCK_N, BLOCK_K, PARTS, UP_STAGES, EVEN, PRECISION,
            )  # fmt: skip


Sums = tuple[Any, ...]  # sums, sums_h and da, which `Launches.finish` adds up: tensors, or addresses


class Launches:
    """The launches of one design for one kind of input: made once, called with tensors.

    Once they are bound, what is scratch is one allocation, given by addresses.

    Args:
        x: (B, T, L, D), features side by side, tokens aligned, a clip within 32-bit offsets. Those of later calls, and
            the weights, have the same strides, dtypes, device and alignment; they may be (B*T, L, D).
        weights: contiguous and aligned, in any one dtype.
        spec: of the adapter.
        design: "fused", "resident" or "tail", whose ``h`` and ``dphi`` are given.
    """

    def __init__(self, x: Tensor, weights: Weights, spec: AdapterSpec, design: str) -> None:
        (B, T, L, D), R, K = x.shape, weights.down.shape[0], weights.conv.shape[2]
        N, dtype, self._is_dynamic = L - spec.num_prefix_tokens, spec.compute_dtype, weights.dilation is not None
        self._device, has_down = x.device, design != "tail"
        self._keeps_dy = has_down and x.dtype != dtype
        self.cast = None if weights.down.dtype == dtype else Cast(weights, dtype)
        plan = launch_plan(design, x, dtype, R)
        tiles = ceil_div(N, plan.BLOCK_M // T)
        programs, grid = B * tiles, (B * (tiles + 1),)
        taps = {name: value for name, value in conv_flags(weights, spec).items() if name not in ("KH", "KW")}
        flags = {"ACTIVATION": spec.activation, **taps, "HAS_DOWN": has_down, "PRECISION": precision()}
        distances, sizes = (spec.dilation[0], spec.max_dilation or 0.0), (tiles, T, N, L - N, D, R)
        numbers = *sizes, *x.stride()[:3], *distances
        options = flags | plan.options(D, R, K, backward=False)
        self._forward = [Launch(_fused_fwd_kernel, grid, numbers, options) for _ in range(2)]  # the second keeps x
        numbers = *sizes, R + PAD, T * L * D, L * D, D, *distances
        options = flags | plan.options(D, R, K, backward=True)
        self._backward = [
            Launch(_fused_bwd_kernel, grid, numbers, {**options, "NEEDS_DX": needs_dx}) for needs_dx in (False, True)
        ]
        self._finish = Launch(_add_sums_kernel, *sums_sizes(weights, programs, programs, B * T * N, has_dup=True))
        h_shape, M, f32 = (B, T, N, R), B * T * L, torch.float32
        parts = [((M, R + PAD), dtype), ((M, R), dtype), (h_shape, dtype)]  # rows, dh, dc
        parts += [((programs, K + 1, R), f32), ((programs, 4, R), f32)]  # sums, sums_h
        parts += [((B, T, N), f32)] * 2 if self._is_dynamic else []  # d, da
        self._scratch = Layout(*parts)
        size = self._scratch.bytes // dtype.itemsize
        start = self._scratch.starts[1] // dtype.itemsize
        self._rows, self._dh_columns = ((M, R + PAD), (R + PAD, 1)), ((R, M), (1, R), start)
        empty = functools.partial(settled_empty, device=x.device)
        shapes = (B, T, L, D), (B * T, L, D)
        self._empty_x, self._empty_kept = ({len(s): empty(s, t) for s in shapes} for t in (x.dtype, dtype))
        self._empty_h, self._empty_scratch = empty(h_shape, dtype), empty((size,), dtype)
        others = weights.down_bias, *weights[3:]  # but down, which a product makes, and conv: see `finish`
        self._empty_gradients = [empty(p.shape, p.dtype) for p in others if p is not None]

    def forward(
        self, x: Tensor, weights: Weights, keeps_x: bool, h: Tensor | None = None, cast: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """``y`` like ``x``; ``h`` (B, T, N, R), or the one given; if asked for, ``x`` in the compute dtype; ``cast``.

        ``cast``: the weights as made by ``self.cast``, where they have another dtype.
        """
        launch, rank = self._forward[keeps_x], x.dim()
        y, c = self._empty_x[rank](), self._empty_h()
        if h is None:
            h = self._empty_h()
        kept = self._empty_kept[rank]() if keeps_x else None
        if cast is None and self.cast is not None:
            cast = self.cast(weights)
        if launch.is_bound and not is_hooked():
            down, down_bias, conv, conv_bias, up, up_bias, *dilation = self._addresses(weights, cast)
            launch.run(
                x.data_ptr(), down, down_bias, conv, conv_bias, *dilation, up, up_bias,
                y.data_ptr(), h.data_ptr(), c.data_ptr(), None if kept is None else kept.data_ptr(),
            )  # fmt: skip
        else:
            w = weights.views(cast)
            launch(
                x, w.down, w.down_bias, w.conv, w.conv_bias, w.dilation, w.dilation_bias, w.up, w.up_bias,
                y, h, c, kept,
            )  # fmt: skip
        return y, h, kept, cast

    def backward(
        self, dy: Tensor, dphi: Tensor | None, h: Tensor, weights: Weights, cast: Tensor | None, needs_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Sums]:
        """``dy``, like ``y``, is contiguous and aligned; ``dphi`` (B, T, N, R) is overwritten.

        Returns:
            ``dx`` like ``dy``, if it is needed; ``rows`` = [φ(c) | 1 | 0 …] (B·T·L, R + PAD) and the transpose of
            ``dh`` (R, B·T·L), both 0 on prefix rows; ``dy`` in the compute dtype, where that is not its own and the
            kernel has read all of it; and what `finish` is given.
        """
        launch, rank = self._backward[needs_dx], dy.dim()
        dx = self._empty_x[rank]() if needs_dx else None
        kept = self._empty_kept[rank]() if self._keeps_dy else None
        if launch.is_bound and self._finish.is_bound and not is_hooked():
            memory = self._empty_scratch()
            start = memory.data_ptr()
            at_rows, at_dh, at_dc, *at_sums = map(start.__add__, self._scratch.starts)
            sums, sums_h, d, da = at_sums if self._is_dynamic else (*at_sums, None, None)
            down, _, conv, conv_bias, up, _, *dilation = self._addresses(weights, cast)
            launch.run(
                dy.data_ptr(), down, conv, conv_bias, *dilation, up, h.data_ptr(),
                None if dx is None else dx.data_ptr(), at_dc if dphi is None else dphi.data_ptr(), at_rows, at_dh,
                d, da, sums, sums_h, None if kept is None else kept.data_ptr(),
            )  # fmt: skip
            # the sums are in the memory that the views hold
            rows, dh_columns = view_of_whole(memory, *self._rows), view_of_whole(memory, *self._dh_columns)
            return dx, rows, dh_columns, kept, (sums, sums_h, da)
        rows, dh, dc, *parts = self._scratch.tensors(self._device)
        tensors: tuple[Any, ...] = tuple(parts) if self._is_dynamic else (*parts, None, None)
        (sums, sums_h, d, da), w = tensors, weights.views(cast)
        launch(
            dy, w.down, w.conv, w.conv_bias, w.dilation, w.dilation_bias, w.up, h,
            dx, dc if dphi is None else dphi, rows, dh, d, da, sums, sums_h, kept,
        )  # fmt: skip
        return dx, rows, dh.t(), kept, (sums, sums_h, da)

    def finish(self, sums: Sums, ddown: Tensor, dup: Tensor, weights: Weights) -> Weights:
        """All gradients, in the dtype of the weights: ``ddown`` as it is, others from ``dup`` (D, R + PAD) and sums."""
        down_bias, conv_bias, up, up_bias, *others = [empty() for empty in self._empty_gradients]
        conv = torch.empty_like(weights.conv)  # which may be channels_last_3d: as contiguous, with other strides
        dilation, dilation_bias = others or (None, None)
        if isinstance(sums[0], Tensor):
            self._finish(*sums, dup, conv, conv_bias, down_bias, dilation, dilation_bias, up, up_bias)
        else:
            self._finish.run(
                *sums, dup.data_ptr(), conv.data_ptr(), conv_bias.data_ptr(), down_bias.data_ptr(),
                None if dilation is None else dilation.data_ptr(),
                None if dilation_bias is None else dilation_bias.data_ptr(), up.data_ptr(), up_bias.data_ptr(),
            )  # fmt: skip
        return as_weights((ddown, down_bias, conv, conv_bias, up, up_bias, dilation, dilation_bias))

    def _addresses(self, weights: Weights, cast: Tensor | None) -> list[Any]:
        if cast is not None and self.cast is not None:
            return self.cast.addresses(cast)
        if self._is_dynamic:
            return [*map(Tensor.data_ptr, weights)]  # type: ignore[arg-type]
        return [*map(Tensor.data_ptr, weights[:6]), None, None]
