"""The last kernel of a backward pass: what each program left of a sum, added up in fp32 and rounded once.

    dw[k] = Σ_p sums[p, k],   dbc = Σ_p sums[p, taps],   dbd = Σ_p sums_h[p, 0],   dW_δ[j] = Σ_p sums_h[p, 1 + j]
    db_δ = Σ da,   and of dup = dyᵀ·[φ(c) | 1 | 0 …] (D, R + PAD) the gradients of the up-projection, apart

Programs of the first stage write one row each, so that there are no atomics and the same call gives the same bits. Read
once: some hundred rows of R columns, as many as there were programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels import scratch
from fe_adapter.kernels.common import rounded
from fe_adapter.kernels.launch import launch
from fe_adapter.kernels.plans import sums_plan
from fe_adapter.kernels.scratch import ConvScratch
from fe_adapter.kernels.spec import PAD, ConvGradients, Weights, ceil_div


@triton.jit(do_not_specialize=("programs", "programs_h", "numel_da"))
def _add_sums_kernel(
    p_sums, p_sums_h, p_da, p_dup,
    p_conv, p_conv_bias, p_down_bias, p_dilation, p_dilation_bias, p_up, p_up_bias,
    programs, programs_h, numel_da, D, R, C,
    TAPS: tl.constexpr, DYNAMIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_R channels of one row of the sums, over all programs that left some; or of BLOCK_M of dup."""
    i_row = tl.program_id(1)
    SUMS: tl.constexpr = TAPS + (6 if DYNAMIC else 2)
    o_m = tl.arange(0, BLOCK_M)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    if i_row >= SUMS:
        if p_dup is not None:
            o_d = (i_row - SUMS) * BLOCK_M + o_m
            m_d = (o_d < D)[:, None]
            b_dup = tl.load(p_dup + (o_d * C)[:, None] + o_r[None, :], m_d & (o_r <= R)[None, :], 0.0).to(tl.float32)
            b_dup = rounded(b_dup, p_up.dtype.element_ty)  # [BLOCK_M, BLOCK_R]
            tl.store(p_up + (o_d * R)[:, None] + o_r[None, :], b_dup, m_d & m_r[None, :])
            tl.store(p_up_bias + o_d[:, None] + (o_r - R)[None, :], b_dup, m_d & (o_r == R)[None, :])
    elif DYNAMIC and i_row == SUMS - 1:
        if tl.program_id(0) == 0:
            b_da = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            o_da = o_m[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
            for first in range(0, numel_da, BLOCK_M * BLOCK_R):
                b_da += tl.load(p_da + first + o_da, first + o_da < numel_da, 0.0)
            b_out = rounded(tl.sum(tl.sum(b_da, 0), 0) + tl.zeros((1,), tl.float32), p_conv.dtype.element_ty)
            tl.store(p_dilation_bias + tl.arange(0, 1), b_out)
    else:
        if i_row > TAPS:
            p_sums = p_sums_h + (i_row - TAPS - 1) * R
            programs = programs_h
            stride_program = 4 * R
        else:
            p_sums += i_row * R
            stride_program = (TAPS + 1) * R
        b_sum = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for m0 in range(0, programs, BLOCK_M):
            o_sum = (m0 + o_m).to(tl.int64) * stride_program
            m_sum = (m0 + o_m < programs)[:, None] & m_r[None, :]
            b_sum += tl.load(p_sums + o_sum[:, None] + o_r[None, :], m_sum, 0.0)
        b_out = rounded(tl.sum(b_sum, 0), p_conv.dtype.element_ty)  # (BLOCK_R,)
        if i_row < TAPS:
            tl.store(p_conv + o_r * TAPS + i_row, b_out, m_r)
        elif i_row == TAPS:
            tl.store(p_conv_bias + o_r, b_out, m_r)
        elif i_row == TAPS + 1:
            tl.store(p_down_bias + o_r, b_out, m_r)
        else:
            if DYNAMIC:
                tl.store(p_dilation + (i_row - TAPS - 2) * R + o_r, b_out, m_r)


Sizes = tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]  # of a launch: grid, numbers, options


def sizes(weights: Weights, programs: int, programs_h: int, numel_da: int, has_dup: bool) -> Sizes:
    """What `_add_sums_kernel` is launched with, besides tensors."""
    (D, R), taps, dynamic, plan = weights.up.shape, weights.conv[0].numel(), weights.dilation is not None, sums_plan()
    rows = taps + (6 if dynamic else 2) + (ceil_div(D, plan.BLOCK_M) if has_dup else 0)
    columns = ceil_div(R + has_dup, plan.BLOCK_R)
    numbers = programs, programs_h, numel_da if dynamic else 0, D, R, R + PAD
    return (columns, rows), numbers, {"TAPS": taps, "DYNAMIC": dynamic, **plan.options()}


def add_sums(first: ConvScratch, sums_h: Tensor, weights: Weights, dtype: torch.dtype) -> ConvGradients:
    """The gradients in ``dtype``, of what the backward kernels left: partial sums, and ``da``."""
    gradients = scratch.conv_gradients(weights, dtype)
    numel_da = 0 if first.da is None else first.da.numel()
    grid, numbers, options = sizes(weights, len(first.sums), len(sums_h), numel_da, has_dup=False)
    tensors = first.sums, sums_h, first.da, None, *gradients, None, None
    launch(_add_sums_kernel, grid, tensors, numbers, options)
    return gradients
