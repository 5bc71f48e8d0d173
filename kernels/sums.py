"""The second stage of the reductions: what each program left of a sum, added up in fp32 and rounded once.

    dw[k] = Σ_p sums[p, k],   dbc = Σ_p sums[p, taps],   dbd = Σ_p sums_h[p, 0],   dW_δ[j] = Σ_p sums_h[p, 1 + j]

Programs of the first stage write one row each, so that there are no atomics and the same call gives the same bits. Read
once: some hundred rows of R columns, as many as there were programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fe_adapter.kernels import scratch
from fe_adapter.kernels.common import rounded
from fe_adapter.kernels.plans import sums_plan
from fe_adapter.kernels.scratch import ConvScratch
from fe_adapter.kernels.spec import ConvGradients, Weights, ceil_div


@triton.jit(do_not_specialize=("programs", "programs_h"))
def _add_sums_kernel(
    p_sums, p_sums_h, p_conv, p_conv_bias, p_down_bias, p_dilation, programs, programs_h, R,
    TAPS: tl.constexpr, DYNAMIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: one row of the sums, BLOCK_R channels, over all programs that left their part of it."""
    i_row = tl.program_id(1)
    o_m = tl.arange(0, BLOCK_M)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
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


def add_sums(first: ConvScratch, sums_h: Tensor, weights: Weights, dtype: torch.dtype) -> ConvGradients:
    """The gradients in ``dtype``, of what the backward kernels left: partial sums, and ``da``."""
    (programs, rows, R), dynamic, plan = first.sums.shape, weights.dilation is not None, sums_plan()
    gradients = scratch.conv_gradients(weights, first.da, dtype)
    *to_fill, _ = gradients
    _add_sums_kernel[(ceil_div(R, plan.BLOCK_R), rows + (4 if dynamic else 1))](  # a static kernel left one of four
        first.sums, sums_h, *to_fill, programs, len(sums_h), R, TAPS=rows - 1, DYNAMIC=dynamic, **plan.options()
    )
    return gradients
