"""The eager backend: the adapter's forward and backward in plain tensor operations, fast on a CPU.

    u = x·Wdᵀ + bd,   c[t] = bc + Σ_k w[k]·u[t + k·d],   y = x + φ(c)·Wuᵀ + bu      (patch tokens only)

Nothing is permuted and nothing is copied that need not be:

- the down-projection is a batched GEMM over the strided patch rows of ``x``, so ``h`` (= u) holds no prefix rows;
- the convolution is a few shifted multiply-adds in the layout ``(B, T, N, R)`` (see `fe_adapter._eager_conv`);
- ``φ(c)`` is written into rows for *all* tokens, zero for prefix tokens, with a column of ones on patch rows. Both of
  its products are then single GEMMs over the matrix that ``x`` already is: the up-projection adds its bias and the
  residual in the same pass, and column R of the weight's gradient is the bias's.

Saved for backward: ``x`` and ``h``; see ``recompute`` in `fe_adapter.functional.adapter`. Convolutions accumulate in
fp32 where the compute dtype is narrower, and are rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter._eager_conv import conv, conv_backward
from fe_adapter._spec import AdapterSpec, Weights

_PAD = 8  # columns after φ(c): one for the bias, the rest zeros that keep the rows aligned


def forward(x: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor]:
    """``y`` (B, T, L, D) in the dtype of ``x``, and ``h`` (B, T, N, R) in the compute dtype."""
    weights = weights.to(spec.compute_dtype)
    h = _down(x, weights, spec)
    c, _ = _convolved(h, weights, spec)
    return _add_product(x, c, _up_with_bias(weights), spec), h


def backward(
    dy: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    weights: Weights,
    spec: AdapterSpec,
    needs_dx: bool,
) -> tuple[Tensor | None, Weights]:
    """``dx`` (None if not needed) and the gradients of the weights, in the accumulate or compute dtype.

    ``h`` may be None: it is computed again from ``x``. Or ``x`` may be None: it is computed again from ``y``.
    """
    B, T, L, D = dy.shape
    P, dtype = spec.num_prefix_tokens, spec.compute_dtype
    weights = weights.to(dtype)
    if h is None:
        assert x is not None
        h = _down(x, weights, spec)
    R = h.shape[-1]
    c, preactivation = _convolved(h, weights, spec)
    if x is None:
        assert y is not None
        x = _add_product(y, c, _up_with_bias(weights), spec, sign=-1)

    dy_rows, x_rows = (z.to(dtype).reshape(B * T * L, D) for z in (dy, x))
    dup = dy_rows.t() @ c.flatten(0, 2)  # (D, R + _PAD)
    dc = torch.bmm(dy_rows.view(B * T, L, D)[:, P:], weights.up.expand(B * T, D, R)).view(h.shape)
    dc = _activation_backward(dc, preactivation, spec.activation)
    dh = c[..., :R]  # takes the place of φ(c), which is no longer needed; its prefix rows are zero already
    dconv, ddilation, ddilation_bias = conv_backward(dc, h, weights, spec, out=dh[:, :, P:])
    gradients = Weights(
        down=dh.flatten(0, 2).t() @ x_rows,
        down_bias=dh.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        conv=dconv,
        conv_bias=dc.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        up=dup[:, :R].clone(memory_format=torch.contiguous_format),
        up_bias=dup[:, R].clone(),
        dilation=ddilation,
        dilation_bias=ddilation_bias,
    )
    return (_add_product(dy, dh, weights.down, spec) if needs_dx else None), gradients


def _down(x: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
    B, T = x.shape[:2]
    patches = x[:, :, spec.num_prefix_tokens :].to(spec.compute_dtype).flatten(0, 1)
    return torch.baddbmm(weights.down_bias, patches, weights.down.t().expand(B * T, -1, -1)).unflatten(0, (B, T))


def _convolved(h: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor | None]:
    """φ(c) as (B, T, L, R + _PAD) with the column of ones, and c (B, T, N, R) where φ's derivative needs it."""
    (B, T, N, R), P = h.shape, spec.num_prefix_tokens
    rows = h.new_empty(B, T, P + N, R + _PAD)
    rows[:, :, :P] = 0
    rows[..., R:] = 0
    rows[:, :, P:, R] = 1
    patches = rows[:, :, P:, :R]
    if spec.activation == "identity" and h.dtype == spec.accumulate_dtype:
        conv(h, weights, spec, out=patches)
        return rows, None
    c = torch.empty_like(h, dtype=spec.accumulate_dtype)
    conv(h, weights, spec, out=c)
    patches.copy_(activate(c, spec.activation))
    return rows, c


def _up_with_bias(weights: Weights) -> Tensor:
    """[Wu | bu | 0]ᵀ (R + _PAD, D)."""
    up = torch.cat([weights.up, weights.up_bias[:, None]], dim=1)
    return F.pad(up, (0, _PAD - 1)).t()


def _add_product(x: Tensor, rows: Tensor, matrix: Tensor, spec: AdapterSpec, sign: int = 1) -> Tensor:
    """``x ± rows @ matrix`` (B, T, L, D) in the dtype of ``x``, whose prefix tokens come back bit-identical."""
    P, base, rows = spec.num_prefix_tokens, x.reshape(-1, x.shape[-1]), rows.flatten(0, 2)
    if base.dtype == rows.dtype:
        y = torch.addmm(base, rows, matrix, alpha=sign)
    else:
        y = torch.add(base, rows @ matrix, alpha=sign).to(x.dtype)
    y = y.view(x.shape)
    y[:, :, :P] = x[:, :, :P]
    return y


def activate(c: Tensor, activation: str) -> Tensor:
    """φ(c): "identity", "relu", "gelu" (tanh form) or "silu"."""
    if activation == "relu":
        return torch.relu(c)
    if activation == "gelu":
        return F.gelu(c, approximate="tanh")
    if activation == "silu":
        return F.silu(c)
    return c


def _activation_backward(g: Tensor, c: Tensor | None, activation: str) -> Tensor:
    if activation == "identity":
        return g
    assert c is not None
    if activation == "relu":
        return g * (c > 0)
    g = g.to(c.dtype)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(g, c, approximate="tanh")
    return torch.ops.aten.silu_backward(g, c)
