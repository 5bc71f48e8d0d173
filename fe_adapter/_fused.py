"""Design ``fused`` of the Triton backend: one launch each way, and library products for the projections' gradients."""

from __future__ import annotations

from torch import Tensor

from fe_adapter import _gemm
from fe_adapter.kernels import fused
from fe_adapter.kernels.spec import AdapterSpec, Weights


def forward(x: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor]:
    """As `fe_adapter._gemm.forward`."""
    return fused.forward(_rows(x), weights.to(spec.compute_dtype), spec)


def backward(
    dy: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    weights: Weights,
    spec: AdapterSpec,
    needs_dx: bool,
) -> tuple[Tensor | None, Weights]:
    """As `fe_adapter._gemm.backward`."""
    weights = weights.to(spec.compute_dtype)
    if h is None:
        assert x is not None
        h = _gemm.down(x, weights, spec)
    dx, rows, dh, conv = fused.backward(_rows(dy), h, weights, spec, needs_dx)
    if x is None:
        assert y is not None
        x = _gemm.remove_product(y, rows, weights, spec)
    return dx, _gemm.gradients(_gemm.flat(dy, spec).t() @ rows.flatten(0, 2), dh, x, conv, spec)


def _rows(x: Tensor) -> Tensor:
    """``x`` with the features of a token side by side, as the kernels read it; expanded gradients get memory."""
    return x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous()
