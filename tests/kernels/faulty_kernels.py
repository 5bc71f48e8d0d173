"""Kernels with planted faults, to see that the interpreter's checks see them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _copy_kernel(p_x, p_y, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_y + o, tl.load(p_x + o))


def overrun() -> None:
    _copy_kernel[(1,)](torch.zeros(5), torch.zeros(5), BLOCK=8)


def collide() -> None:
    _copy_kernel[(2,)](torch.zeros(8), torch.zeros(8), BLOCK=8)
