"""The adapter as library products around a convolution: the eager backend, and design ``gemm`` of the Triton backend.

    u = x·Wdᵀ + bd,   c[t] = bc + Σ_k w[k]·u[t + k·d],   y = x + φ(c)·Wuᵀ + bu      (patch tokens only)

Nothing is permuted and nothing is copied that need not be:

- the down-projection is a batched GEMM over the strided patch rows of ``x``, so ``h`` (= u) holds no prefix rows;
- the convolution comes as an argument: shifted multiply-adds on a CPU (`fe_adapter.ops.eager_conv`), a Triton kernel on
  a GPU (`fe_adapter.kernels.conv`), both in the layout ``(B, T, N, R)``;
- it writes ``φ(c)`` into rows for *all* tokens, zero for prefix tokens, with a column of ones on patch rows. Both of
  its products are then single GEMMs over the matrix that ``x`` already is: the up-projection adds its bias and the
  residual in the same pass, and column R of the weight's gradient is the bias's.

Saved for backward: ``x``, in the compute dtype if that is narrower, and ``h``; see ``recompute`` in
`fe_adapter.functional.adapter`. Convolutions accumulate in fp32 where the compute dtype is narrower, and are rounded
once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights


class Convolution(Protocol):
    """What a module of convolutions offers; ``h``, ``dphi`` and ``dc`` are contiguous (B, T, N, R), weights may lie as
    they like."""

    def cast(self, weights: Weights, dtype: torch.dtype) -> Tensor:
        """All weights in ``dtype``, flat: see `Weights.views`."""

    def activated_rows(self, h: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
        """``[φ(c) | 1 | 0 …]`` (B, T, L, R + PAD) in the dtype of ``h``, 0 on prefix rows."""

    def backward_activation(
        self, dphi: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec
    ) -> tuple[Tensor, Tensor, Any]:
        """``activated_rows`` again, the gradient ``dc`` of ``c``, and what `backward_hidden` wants to be given."""

    def backward_hidden(
        self, dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor, state: Any
    ) -> ConvGradients:
        """Write ``dh`` into the first R columns of ``out``'s patch rows; returns the other gradients."""


# What a forward pass gives, and leaves for backward: y, like x; h (B, T, N, R) in the compute dtype; x in that dtype,
# if it was asked for; the weights in it, flat, if their own is another.
Forward = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Products:
    """An adapter around ``convolution``, for clips of one ``shape`` (B, T, L, D), which may be given as (B*T, L, D)."""

    def __init__(self, shape: torch.Size, spec: AdapterSpec, convolution: Convolution) -> None:
        self._shape, self._spec, self._convolution = shape, spec, convolution

    def forward(self, x: Tensor, weights: Weights, keeps_x: bool) -> Forward:
        """``x`` of any strides; see `Forward`. ``keeps_x``: return it in the compute dtype."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x, weights, keeps_x)
        given, spec, shape = as_frames(x), self._spec, x.shape
        kept = in_dtype(given, spec.compute_dtype) if keeps_x else None
        weights, cast = self._in_compute_dtype(weights, None)
        h = down(given if kept is None else kept, self._shape[:2], weights, spec)
        rows = self._convolution.activated_rows(h, weights, spec)
        y = _add_product(given, rows, _up_with_bias(weights), spec, shape)
        return y, h, None if kept is None else kept.view(shape), cast

    def backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        y: Tensor | None,
        h: Tensor | None,
        cast: Tensor | None,
        weights: Weights,
        needs_dx: bool,
    ) -> tuple[Tensor | None, Weights]:
        """``dx`` (None if not needed) and the gradients of the weights in their dtype.

        ``h`` may be None: it is computed again from ``x``. Or ``x`` may be None: it is computed again from ``y``. ``x``
        and ``cast`` may be those of `Forward`.
        """
        if torch.is_autocast_enabled(dy.device.type):
            with torch.autocast(dy.device.type, enabled=False):
                return self.backward(dy, x, y, h, cast, weights, needs_dx)
        spec, convolution, dtype = self._spec, self._convolution, weights.down.dtype
        weights, _ = self._in_compute_dtype(weights, cast)
        shape, given = dy.shape, as_frames(dy)
        dy = in_dtype(given, spec.compute_dtype).contiguous()
        if h is None:
            assert x is not None
            h = down(as_frames(x), self._shape[:2], weights, spec)
        dphi = activation_gradient(dy, self._shape[:2], weights, spec)
        rows, dc, state = convolution.backward_activation(dphi, h, weights, spec)
        if x is None:
            assert y is not None
            x = remove_product(as_frames(y), rows, weights, spec)
        dup = product(dy.flatten(0, 1).t(), rows.flatten(0, 2), dtype)
        conv = convolution.backward_hidden(dc, h, weights, spec, rows, state)
        R = h.shape[-1]
        dh = rows.narrow(3, 0, R)  # took the place of φ(c), which is no longer needed; its prefix rows are zero already
        dx = _add_product(given, dh, weights.down, spec, shape) if needs_dx else None
        x_rows = in_dtype(x, spec.compute_dtype).flatten(0, -2)
        gradients = Weights(
            down=product(dh.flatten(0, 2).t(), x_rows, dtype),
            down_bias=conv.down_bias,
            conv=conv.conv,
            conv_bias=conv.conv_bias,
            up=dup.narrow(1, 0, R).contiguous(),
            up_bias=dup.select(1, R).contiguous(),
            dilation=conv.dilation,
            dilation_bias=conv.dilation_bias,
        )
        if conv.conv.dtype == dtype == dup.dtype:
            return dx, gradients
        return dx, Weights(*(None if g is None else g.to(dtype) for g in gradients))  # type: ignore[arg-type]

    def _in_compute_dtype(self, weights: Weights, cast: Tensor | None) -> tuple[Weights, Tensor | None]:
        if weights.down.dtype == self._spec.compute_dtype:
            return weights, None
        if cast is None:
            cast = self._convolution.cast(weights, self._spec.compute_dtype)
        return weights.views(cast), cast


def as_frames(x: Tensor) -> Tensor:
    """(B, T, L, D) or (B*T, L, D) as the latter."""
    return x if x.dim() == 3 else x.flatten(0, 1)


def in_dtype(z: Tensor, dtype: torch.dtype) -> Tensor:
    """``z`` in ``dtype``; where it is that, PyTorch takes the host several times as long to find out."""
    return z if z.dtype == dtype else z.to(dtype)


def down(x: Tensor, clips: torch.Size, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``h`` (B, T, N, R) of the patch tokens of ``x`` (B*T, L, D); ``clips`` is (B, T)."""
    BT, L, D = x.shape
    P, R = spec.num_prefix_tokens, weights.down.shape[0]
    patches = in_dtype(x.narrow(1, P, L - P), spec.compute_dtype)
    h = torch.baddbmm(weights.down_bias, patches, weights.down.t().expand(BT, D, R))
    return h.view(*clips, L - P, R)


def activation_gradient(dy: Tensor, clips: torch.Size, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``dφ`` = dy·Wu (B, T, N, R) of the patch tokens of ``dy`` (B*T, L, D), in the compute dtype."""
    BT, L, D = dy.shape
    P, R = spec.num_prefix_tokens, weights.up.shape[1]
    dphi = torch.bmm(dy.narrow(1, P, L - P), weights.up.expand(BT, D, R))
    return dphi.view(*clips, L - P, R)


def remove_product(y: Tensor, rows: Tensor, weights: Weights, spec: AdapterSpec, is_rounded: bool = True) -> Tensor:
    """``x`` (B*T, L, D) again, from ``y`` like it and ``[φ(c) | 1 | 0 …]``; half an ulp of ``y`` off.

    ``is_rounded``: whether the product was rounded to the compute dtype before a wider ``x`` was added to it.
    """
    return _add_product(y, rows, _up_with_bias(weights), spec, y.shape, sign=-1, is_rounded=is_rounded)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in ``dtype``; of 16-bit operands a GPU gives fp32 without rounding in between."""
    return settled_product(a.dtype, dtype, a.device)(a, b)


def settled_product(given: torch.dtype, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`product` in ``dtype`` of operands that are ``given``, without asking on each call."""
    if given == dtype:
        return torch.mm
    if not _has_wide_products(given, device):
        return lambda a, b: torch.mm(a, b).to(dtype)
    wide = functools.partial(torch.mm, out_dtype=torch.float32)
    return wide if dtype == torch.float32 else lambda a, b: wide(a, b).to(dtype)


def _has_wide_products(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cuda" and dtype.itemsize == 2 and torch.version.hip is None


def _up_with_bias(weights: Weights) -> Tensor:
    """[Wu | bu | 0]ᵀ (R + PAD, D)."""
    zeros = weights.up.new_zeros(len(weights.up), PAD - 1)
    return torch.cat((weights.up, weights.up_bias.unsqueeze(1), zeros), 1).t()


def _product_in_f32(rows: Tensor, matrix: Tensor) -> Tensor:
    if _has_wide_products(rows.dtype, rows.device):
        return torch.mm(rows, matrix, out_dtype=torch.float32)
    return rows.float() @ matrix.float()


def _add_product(
    x: Tensor,
    rows: Tensor,
    matrix: Tensor,
    spec: AdapterSpec,
    shape: torch.Size,
    sign: int = 1,
    is_rounded: bool = True,
) -> Tensor:
    """``x ± rows @ matrix`` of ``shape``, in the dtype of ``x`` (B*T, L, D), whose prefix tokens are bit-identical."""
    P, y, rows = spec.num_prefix_tokens, x.new_empty(shape), rows.flatten(0, 2)
    base, out = x.flatten(0, 1), y.flatten(0, -2)
    if x.dtype == rows.dtype:
        torch.addmm(base, rows, matrix, alpha=sign, out=out)
    else:
        product = rows @ matrix if is_rounded else _product_in_f32(rows, matrix)
        torch.add(base, product, alpha=sign, out=out)
    if P:
        as_frames(y).narrow(1, 0, P).copy_(x.narrow(1, 0, P))
    return y
