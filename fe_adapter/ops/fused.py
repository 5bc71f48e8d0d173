"""Designs ``fused``, ``resident``, ``tail`` of the Triton backend: one launch each way, the rest library products."""

from __future__ import annotations

import torch
from torch import Tensor

from fe_adapter.kernels import fused
from fe_adapter.kernels.spec import AdapterSpec, Weights
from fe_adapter.ops import products


def forward(x: Tensor, weights: Weights, spec: AdapterSpec, design: str) -> tuple[Tensor, Tensor]:
    """``y`` (B, T, L, D) like ``x``, and ``h`` (B, T, N, R) in the compute dtype, by one launch of ``design``."""
    weights = weights.to(spec.compute_dtype)
    h = products.down(x, weights, spec) if design == "tail" else None
    return fused.forward(_rows(x), h, weights, spec, design)


def backward(
    dy: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    weights: Weights,
    spec: AdapterSpec,
    needs_dx: bool,
    design: str,
) -> tuple[Tensor | None, Weights]:
    """``dx`` (None if not needed) and the gradients of the weights; see `fe_adapter.ops.products.backward`."""
    weights = weights.to(spec.compute_dtype)
    if h is None:
        assert x is not None
        h = products.down(x, weights, spec)
    dy_rows = products.flat(dy, spec)
    dphi = products.activation_gradient(dy_rows.view(dy.shape), weights, spec) if design == "tail" else None
    dx, rows, dh, conv = fused.backward(_rows(dy), dphi, h, weights, spec, needs_dx, design)
    if x is None:
        assert y is not None
        x = products.remove_product(y, rows, weights, spec, is_rounded=False)
    return dx, products.gradients(dy_rows.t() @ rows.flatten(0, 2), dh, x, conv, spec)


def _rows(x: Tensor) -> Tensor:
    """``x`` as the kernels read it: features side by side, tokens aligned, a clip within 32-bit offsets; or a copy."""
    strides = x.stride()
    is_aligned = x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in strides[:-1])
    reach = sum((size - 1) * stride for size, stride in zip(x.shape[1:], strides[1:], strict=True))
    if strides[-1] == 1 and 0 not in strides and is_aligned and reach < 2**31:
        return x
    return x.clone(memory_format=torch.contiguous_format)
