"""Designs ``fused``, ``resident``, ``tail`` of the Triton backend: one launch each way, the rest library products."""

from __future__ import annotations

import torch
from torch import Tensor

from fe_adapter.kernels import plans
from fe_adapter.kernels.fused import Launches
from fe_adapter.kernels.scratch import view_of_whole
from fe_adapter.kernels.spec import AdapterSpec, Kept, Rows, Weights, alone, layout_of
from fe_adapter.ops import products
from fe_adapter.ops.products import Forward

_kept = Kept()


class Fused:
    """A design for inputs of one kind: shapes, strides, dtypes and alignment of ``x`` (B, T, L, D) and every weight."""

    def __init__(self, x: Tensor, weights: Weights, spec: AdapterSpec, design: str) -> None:
        self._spec, self._is_tail, self._device = spec, design == "tail", x.device
        self._gemms = products.Gemms(x.shape, len(weights.down), spec)
        self._dtype, alone_weights = weights.down.dtype, weights.alone(weights.down.dtype, x.device)
        self._is_readable, self._are_alone = _is_readable(x), alone_weights is weights
        x = x if self._is_readable else x.clone(memory_format=torch.contiguous_format)
        self._launches = Launches(x, alone_weights, spec, design)
        D, M = x.shape[-1], x.shape[:3].numel()
        self._rows, self._columns = ((M, D), (D, 1)), ((D, M), (1, D))  # of what is contiguous
        if self._is_readable and self._are_alone and not self._is_tail:
            self.forward = self._launches.forward  # type: ignore[method-assign]  # at once
        wide = torch.promote_types(spec.compute_dtype, self._dtype)  # which a last kernel rounds
        self._product = products.settled_product(spec.compute_dtype, wide, x.device)

    def forward(self, x: Tensor, weights: Weights, keeps_x: bool) -> Forward:
        """See `fe_adapter.ops.products.Products.forward`."""
        launches = self._launches
        if not self._is_readable:
            x = x.clone(memory_format=torch.contiguous_format)
        if not self._are_alone:
            weights = weights.alone(self._dtype, self._device)
        if not self._is_tail:
            return launches.forward(x, weights, keeps_x)
        cast = None if launches.cast is None else launches.cast(weights)
        rounded = x.to(self._spec.compute_dtype)
        with torch.autocast(self._device.type, enabled=False):
            h = self._gemms.down(rounded, weights.views(cast))
        y, h, _, _ = launches.forward(x, weights, False, h, cast)
        return y, h, rounded if keeps_x else None, cast

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
        """See `fe_adapter.ops.products.Products.backward`."""
        if torch.is_autocast_enabled(self._device.type):
            with torch.autocast(self._device.type, enabled=False):
                return self.backward(dy, x, y, h, cast, weights, needs_dx)
        launches, dtype = self._launches, self._spec.compute_dtype
        if not self._are_alone:
            weights = weights.alone(self._dtype, self._device)
        # hooks on saved tensors may give back others
        h = h if h is None else alone(h, dtype, self._device)
        cast = cast if cast is None else alone(cast, dtype, self._device)
        if cast is None and launches.cast is not None:  # it was not kept
            cast = launches.cast(weights)
        if not dy.is_contiguous() or dy.data_ptr() % 16:
            dy = dy.clone(memory_format=torch.contiguous_format)
        if h is None:
            assert x is not None
            h = self._gemms.down(x, weights.views(cast))
        dy_rows, dphi = dy, None
        if self._is_tail:
            dy_rows = dy.to(dtype)
            dphi = self._gemms.activation_gradient(dy_rows, weights.views(cast))
        dx, rows, dh_columns, rounded, sums = launches.backward(dy, dphi, h, weights, cast, needs_dx)
        if x is None:
            assert y is not None
            x = self._gemms.remove_up(y, Rows(rows, dy.shape[-1]), weights.views(cast), is_rounded=False)
        x = products.in_dtype(x, dtype)
        dy_columns = view_of_whole(dy_rows if rounded is None else rounded, *self._columns)
        x_rows = view_of_whole(x, *self._rows) if x.is_contiguous() else x.reshape(self._rows[0])
        dup, ddown = self._product(dy_columns, rows), self._product(dh_columns, x_rows)
        return dx, launches.finish(sums, products.in_dtype(ddown, self._dtype), dup, weights)


def fused(x: Tensor, weights: Weights, spec: AdapterSpec, design: str) -> Fused:
    """A `Fused` for such inputs: the one that served them before, if they are kept."""
    key = design, spec, layout_of(x), *map(layout_of, weights), plans.precision()
    return _kept.get(key) or _kept.keep(key, Fused(x, weights, spec, design))


def _is_readable(x: Tensor) -> bool:
    """Whether the kernels can read it: features side by side, tokens aligned, a clip within 32-bit offsets."""
    strides = x.stride()
    is_aligned = x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in strides[:-1])
    reach = sum((size - 1) * stride for size, stride in zip(x.shape[1:], strides[1:], strict=True))
    return strides[-1] == 1 and 0 not in strides and is_aligned and reach < 2**31
