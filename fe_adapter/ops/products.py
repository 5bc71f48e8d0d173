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

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Rows, Weights

# what an operator's own kernels run in: nothing is recorded, and autograd keeps no account of views
_below_autograd = torch._C._AutoDispatchBelowADInplaceOrView


class Convolution(Protocol):
    """What a convolution offers, for one shape of clips, of weights and one spec.

    ``h``, ``dphi`` and ``dc`` are contiguous (B, T, N, R), each alone in its memory; weights may lie as they like.

    Attributes:
        reuses_rows: whether `rows` may serve later calls as well.
    """

    reuses_rows: bool

    def cast(self, weights: Weights, dtype: torch.dtype) -> Tensor:
        """All weights in ``dtype``, flat: see `Weights.views`."""

    def rows(self, h: Tensor) -> Any:
        """`Rows` in the dtype of ``h``, to be filled."""

    def activate(self, h: Tensor, weights: Weights, rows: Any) -> None:
        """Fill ``rows``: φ(c) and 1 for patches, 0 for prefix tokens."""

    def backward_activation(self, dphi: Tensor, h: Tensor, weights: Weights, rows: Any) -> tuple[Tensor, Any]:
        """`activate` again; the gradient ``dc`` of ``c``, and what `backward_hidden` wants to be given."""

    def backward_hidden(self, dc: Tensor, h: Tensor, weights: Weights, rows: Any, state: Any) -> ConvGradients:
        """Write ``dh`` in the place of φ(c); returns the other gradients."""


MakeConvolution = Callable[[torch.Size, Weights, AdapterSpec], Convolution]  # of clips (B, T, L, D)

# What a forward pass gives, and leaves for backward: y, like x; h (B, T, N, R) in the compute dtype; x in that dtype,
# if it was asked for; the weights in it, flat, if their own is another.
Forward = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Gemms:
    """The products of an adapter that a library computes, for clips of one ``shape`` (B, T, L, D).

    ``x``, ``y`` and ``dy`` may be given as (B*T, L, D), which is what results are like. What is contiguous is viewed by
    `Tensor.as_strided`: others reach it by way of several operators, and the host waits for each where clips are small.
    """

    def __init__(self, shape: torch.Size, bottleneck: int, spec: AdapterSpec) -> None:
        (B, T, L, D), P, R = shape, spec.num_prefix_tokens, bottleneck
        self._compute_dtype, self._frames, self._num_prefix_tokens, self._first = spec.compute_dtype, B * T, P, P * D
        self._rows, self._hidden, self._matrices = (B * T * L, D), (B, T, L - P, R), (B * T, D, R)
        self._patches, self._prefix = ((B * T, L - P, D), (L * D, D, 1)), ((B * T, P, D), (L * D, D, 1))

    def down(self, x: Tensor, weights: Weights) -> Tensor:
        """``h`` (B, T, N, R) of the patch tokens of ``x``, in the compute dtype."""
        matrix = weights.down
        by_row, by_column = matrix.stride()
        patches = in_dtype(self._patches_of(x), self._compute_dtype)
        matrices = matrix.as_strided(self._matrices, (0, by_column, by_row))
        return torch.baddbmm(weights.down_bias, patches, matrices).view(self._hidden)

    def activation_gradient(self, dy: Tensor, weights: Weights) -> Tensor:
        """``dφ`` = dy·Wu (B, T, N, R) of the patch tokens of ``dy``, which is in the compute dtype."""
        matrix = weights.up
        matrices = matrix.as_strided(self._matrices, (0, *matrix.stride()))
        return torch.bmm(self._patches_of(dy), matrices).view(self._hidden)

    def up(self, x: Tensor, rows: Rows, weights: Weights) -> Tensor:
        """``y`` of ``x``."""
        return self.add(x, rows.matrix, _up_with_bias(weights, rows))

    def remove_up(self, y: Tensor, rows: Rows, weights: Weights, is_rounded: bool = True) -> Tensor:
        """``x`` again, from ``y`` and the rows of `up`; half an ulp of ``y`` off.

        ``is_rounded``: whether the product was rounded to the compute dtype before a wider ``x`` was added to it.
        """
        return self.add(y, rows.matrix, _up_with_bias(weights, rows), sign=-1, is_rounded=is_rounded)

    def add(self, x: Tensor, rows: Tensor, matrix: Tensor, sign: int = 1, is_rounded: bool = True) -> Tensor:
        """``x ± rows @ matrix``, in the dtype of ``x``, whose prefix tokens are bit-identical."""
        is_contiguous, y = x.is_contiguous(), x.new_empty(x.shape)
        base, out = x.view(self._rows) if is_contiguous else x.reshape(self._rows), y.view(self._rows)
        if x.dtype == rows.dtype:
            torch.addmm(base, rows, matrix, alpha=sign, out=out)
        else:
            product = rows @ matrix if is_rounded else _product_in_f32(rows, matrix)
            torch.add(base, product, alpha=sign, out=out)
        if P := self._num_prefix_tokens:
            prefix = x.as_strided(*self._prefix) if is_contiguous else base.unflatten(0, (self._frames, -1))[:, :P]
            y.as_strided(*self._prefix).copy_(prefix)
        return y

    def _patches_of(self, z: Tensor) -> Tensor:
        if not z.is_contiguous():
            return z.flatten(0, -3).narrow(1, self._num_prefix_tokens, self._hidden[2])
        return z.as_strided(*self._patches, z.storage_offset() + self._first)


class Products:
    """An adapter around a convolution, for clips of one ``shape`` (B, T, L, D), which may be given as (B*T, L, D)."""

    def __init__(
        self, shape: torch.Size, weights: Weights, spec: AdapterSpec, make_convolution: MakeConvolution
    ) -> None:
        D, M, R, C = shape[-1], shape[:3].numel(), len(weights.down), len(weights.down) + PAD
        self._compute_dtype, self._device_type = spec.compute_dtype, weights.down.device.type
        self._gemms, self._convolution = Gemms(shape, R, spec), make_convolution(shape, weights, spec)
        self._product = settled_product(spec.compute_dtype, weights.down.dtype, weights.down.device)
        self._x_rows, self._dy_columns = (M, D), ((D, M), (1, D))
        self._up, self._up_bias = ((D, R), (C, 1)), ((D,), (C,), R)  # of one product that holds both gradients
        self._rows: list[Rows] = []  # that no call uses at present

    def forward(self, x: Tensor, weights: Weights, keeps_x: bool) -> Forward:
        """``x`` of any strides; see `Forward`. ``keeps_x``: return it in the compute dtype."""
        if torch.is_autocast_enabled(self._device_type):
            with torch.autocast(self._device_type, enabled=False):
                return self.forward(x, weights, keeps_x)
        with _below_autograd():
            kept = in_dtype(x, self._compute_dtype) if keeps_x else None
            weights, cast = self._in_compute_dtype(weights, None)
            h = self._gemms.down(x if kept is None else kept, weights)
            convolution, rows = self._convolution, self._take_rows(h)
            convolution.activate(h, weights, rows)
            y = self._gemms.up(x, rows, weights)
            if convolution.reuses_rows:
                self._rows.append(rows)
            return y, h, kept, cast

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
        if torch.is_autocast_enabled(self._device_type):
            with torch.autocast(self._device_type, enabled=False):
                return self.backward(dy, x, y, h, cast, weights, needs_dx)
        with _below_autograd():
            gemms, convolution, dtype, given = self._gemms, self._convolution, weights.down.dtype, dy
            weights, _ = self._in_compute_dtype(weights, cast)
            dy = in_dtype(dy, self._compute_dtype).contiguous()
            if h is None:
                assert x is not None
                h = gemms.down(x, weights)
            elif h.dtype != self._compute_dtype or h.storage_offset() or not h.is_contiguous() or h.is_neg():
                h = h.to(self._compute_dtype, copy=True, memory_format=torch.contiguous_format)  # of a hook
            rows = self._take_rows(h)
            dc, state = convolution.backward_activation(gemms.activation_gradient(dy, weights), h, weights, rows)
            if x is None:
                assert y is not None
                x = gemms.remove_up(y, rows, weights)
            dup = self._product(dy.as_strided(*self._dy_columns), rows.matrix)
            conv = convolution.backward_hidden(dc, h, weights, rows, state)
            dx = gemms.add(given, rows.dh, weights.down) if needs_dx else None  # 0 for prefix tokens already
            x_rows = in_dtype(x, self._compute_dtype).reshape(self._x_rows)
            gradients = Weights(
                down=self._product(rows.dh_columns, x_rows),
                down_bias=conv.down_bias,
                conv=conv.conv,
                conv_bias=conv.conv_bias,
                up=dup.as_strided(*self._up).clone(memory_format=torch.contiguous_format),
                up_bias=dup.as_strided(*self._up_bias).clone(memory_format=torch.contiguous_format),
                dilation=conv.dilation,
                dilation_bias=conv.dilation_bias,
            )
            if convolution.reuses_rows and type(rows.matrix) is Tensor:  # `h` may be a subclass's
                self._rows.append(rows)
        if conv.conv.dtype == dtype == dup.dtype:
            return dx, gradients
        return dx, Weights(*(None if g is None else g.to(dtype) for g in gradients))  # type: ignore[arg-type]

    def _take_rows(self, h: Tensor) -> Rows:
        try:
            return self._rows.pop()  # at once, whatever other threads do
        except IndexError:
            return self._convolution.rows(h)

    def _in_compute_dtype(self, weights: Weights, cast: Tensor | None) -> tuple[Weights, Tensor | None]:
        if weights.down.dtype == self._compute_dtype:
            return weights, None
        if cast is None:
            cast = self._convolution.cast(weights, self._compute_dtype)
        return weights.views(in_dtype(cast, self._compute_dtype)), cast


def in_dtype(z: Tensor, dtype: torch.dtype) -> Tensor:
    """``z`` in ``dtype``; where it is that, PyTorch takes the host several times as long to find out."""
    return z if z.dtype == dtype else z.to(dtype)


def settled_product(given: torch.dtype, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes ``a @ b`` in ``dtype``, of operands that are ``given``; a GPU rounds 16 bits' product once."""
    if given == dtype:
        return torch.mm
    if not _has_wide_products(given, device):
        return lambda a, b: torch.mm(a, b).to(dtype)
    wide = functools.partial(torch.mm, out_dtype=torch.float32)
    return wide if dtype == torch.float32 else lambda a, b: wide(a, b).to(dtype)


def _has_wide_products(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cuda" and dtype.itemsize == 2 and torch.version.hip is None


def _up_with_bias(weights: Weights, rows: Rows) -> Tensor:
    """[Wu | bu | 0]ᵀ (R + PAD, D)."""
    return torch.cat((weights.up, weights.up_bias.unsqueeze(1), rows.zeros), 1).t()


def _product_in_f32(rows: Tensor, matrix: Tensor) -> Tensor:
    if _has_wide_products(rows.dtype, rows.device):
        return torch.mm(rows, matrix, out_dtype=torch.float32)
    return rows.float() @ matrix.float()
