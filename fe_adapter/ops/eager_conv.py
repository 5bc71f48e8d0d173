"""The temporal convolution of the eager backend, static and dynamic, forward and backward.

Activations are ``(B, T, N, R)``, viewed as ``(B, T, H, W, R)`` where taps lie on the grid. A tap reads its source
through a view that leaves out what is outside, so zero padding costs nothing and nothing is copied.

With a dynamic dilation d, the side taps of a patch position read real-valued frame positions τ = t + k·d[t]. Linear
interpolation is then a small matrix per position, ``A_k[t, n] = hat(τ_k[t] − n)`` with ``hat(z) = max(0, 1 − |z|)``,
applied to all channels by a GEMM batched over positions: no gather and no scatter, hence the same bits every time.
``hat'`` is taken from the right, which is what autograd gives for floor and linear interpolation.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Rows, Weights
from fe_adapter.ops.products import in_dtype

_SMALL = 2**15  # bytes that may stay allocated between calls
_CHUNK = 2**20  # elements of the clips whose interpolation is computed at a time: few operators, and still in cache

Tap = tuple[int, ...]  # (t, h, w)
Index = tuple[int | slice, ...]
View = tuple[tuple[int, ...], tuple[int, ...], int]  # of `Tensor.as_strided`: size, strides, the first element


class EagerConvolution:
    """`fe_adapter.ops.products.Convolution` in plain PyTorch, for clips of one ``shape`` (B, T, L, D).

    Where clips are small, the host waits for every line of it. So all that shapes say is settled once, and what is made
    here is viewed by `Tensor.as_strided`, which an index or `Tensor.narrow` reaches by way of other operators.
    """

    def __init__(self, shape: torch.Size, weights: Weights, spec: AdapterSpec) -> None:
        (B, T, L, D), P, R = shape, spec.num_prefix_tokens, len(weights.down)
        C = R + PAD
        self._spec, self._dtype, self._kernel = spec, spec.accumulate_dtype, weights.conv.shape[2:]
        self._is_exact = spec.compute_dtype == self._dtype  # nothing is rounded after the convolution
        self._grid, self._embed_dim, self._num_prefix_tokens = (B, T, *spec.grid_size, R), D, P
        is_dynamic, num_taps = weights.dilation is not None, math.prod(self._kernel)
        self._by_tap_view = (num_taps, R), (1, num_taps)
        self._own, self._taps = _taps(self._kernel, self._grid, P, spec.dilation, spec.causal, is_dynamic)
        is_small = B * T * L * C * spec.compute_dtype.itemsize <= _SMALL
        self.reuses_rows = is_small and weights.down.device.type == "cpu"  # where nothing runs later than it is called

    @staticmethod
    def cast(weights: Weights, dtype: torch.dtype) -> Tensor:
        """All weights in ``dtype``, flat: see `Weights.views`."""
        flat = weights.down.new_zeros(weights.flat_starts()[-1], dtype=dtype)
        for part, p in zip(weights.views(flat), weights, strict=True):
            if p is not None and part is not None:
                part.copy_(p)
        return flat

    def rows(self, h: Tensor) -> EagerRows:
        with torch.inference_mode(False):  # others than inference may use them next
            return EagerRows(h, self._num_prefix_tokens, self._embed_dim, self._taps)

    def activate(self, h: Tensor, weights: Weights, rows: EagerRows) -> None:
        self._fill(h, weights, rows, self._by_tap(weights))

    def backward_activation(
        self, dphi: Tensor, h: Tensor, weights: Weights, rows: EagerRows
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        by_tap = self._by_tap(weights)
        c = self._fill(h, weights, rows, by_tap)
        return _activation_backward(dphi, c, self._spec.activation), by_tap

    def backward_hidden(
        self, dc: Tensor, h: Tensor, weights: Weights, rows: EagerRows, state: tuple[Tensor, ...]
    ) -> ConvGradients:
        conv, dilation, dilation_bias = self._backward(dc, h, weights, state, rows)
        dtype = self._dtype
        conv_bias, down_bias = dc.sum((0, 1, 2), dtype=dtype), rows.columns.sum((0, 1, 2), dtype=dtype)
        return ConvGradients(conv, conv_bias, down_bias, dilation, dilation_bias)

    def _by_tap(self, weights: Weights) -> tuple[Tensor, ...]:
        """(R, 1, K, kh, kw) as K·kh·kw of (R,), in the dtype in which convolutions are computed."""
        conv = weights.conv if self._is_exact else weights.conv.to(self._dtype)
        by_tap = conv.as_strided(*self._by_tap_view) if conv.is_contiguous() else conv.flatten(1).t()
        return by_tap.contiguous().unbind()

    def _fill(self, h: Tensor, weights: Weights, rows: EagerRows, by_tap: tuple[Tensor, ...]) -> Tensor | None:
        """Write φ(c) into ``rows``; c (B, T, N, R), where φ's derivative needs it."""
        if self._is_exact and self._spec.activation == "identity":
            self._convolve(h, weights, by_tap, rows.patches, rows.outputs)
            return None
        c = torch.empty_like(h, dtype=self._dtype)
        h = h if self._is_exact else h.to(self._dtype)
        self._convolve(h, weights, by_tap, c, [c.as_strided(*tap.outputs) for tap in self._taps])
        rows.patches.copy_(_activate(c, self._spec.activation))
        return c

    def _convolve(
        self, h: Tensor, weights: Weights, by_tap: tuple[Tensor, ...], out: Tensor, outputs: Sequence[Tensor]
    ) -> None:
        """Write the convolution c of ``h``, both (B, T, N, R), into ``out``; ``outputs`` are its views, by tap."""
        bias = weights.conv_bias if self._is_exact else weights.conv_bias.to(self._dtype)
        torch.addcmul(bias, h, by_tap[self._own], out=out)
        for tap, here in zip(self._taps, outputs, strict=True):
            here.addcmul_(h.as_strided(*tap.sources), by_tap[tap.number])
        if weights.dilation is not None:
            source, c = h.view(self._grid), out.view(self._grid)
            d, _ = predict_dilation(h, weights, self._spec)
            for i, _, near, far, z in self._interpolating_taps(d):
                values = _by_frame(torch.bmm(_hat(z), _by_position(source[far])), c[near])
                c[near].addcmul_(values, by_tap[i])

    def _backward(
        self, dc: Tensor, h: Tensor, weights: Weights, by_tap: tuple[Tensor, ...], rows: EagerRows
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `backward_hidden`; return the gradients of the taps, of the dilation's weight and of its bias."""
        if self._is_exact:
            g, dh, sources = dc, rows.patches, rows.sources
        else:
            h, g = h.to(self._dtype), dc.to(self._dtype)
            dh = torch.empty_like(g)
            sources = [dh.as_strided(*tap.sources) for tap in self._taps]
        torch.mul(g, by_tap[self._own], out=dh)
        gradients = {self._own: (g * h).sum((0, 1, 2))}
        for tap, there in zip(self._taps, sources, strict=True):
            g_here = g.as_strided(*tap.outputs)
            there.addcmul_(g_here, by_tap[tap.number])
            gradients[tap.number] = (g_here * h.as_strided(*tap.sources)).sum((0, 1, 2, 3))
        ddilation = ddilation_bias = None
        if weights.dilation is not None:
            ddilation, ddilation_bias = self._backward_dilation(g, h, weights, by_tap, gradients, dh)
        if not self._is_exact:
            rows.patches.copy_(dh)
        dw = torch.stack([gradients[i] for i in range(len(by_tap))], 1)
        return dw.view(weights.conv.shape), ddilation, ddilation_bias

    def _backward_dilation(
        self,
        dc: Tensor,
        h: Tensor,
        weights: Weights,
        by_tap: tuple[Tensor, ...],
        gradients: dict[int, Tensor],
        dh: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Add what interpolation passes on to ``dh`` and the taps' ``gradients``; return those of the prediction."""
        assert weights.dilation is not None
        d, d_slope = predict_dilation(h, weights, self._spec)
        dd, present = torch.zeros_like(d), self._spec.present(3)
        for i in range(len(by_tap)):
            gradients.setdefault(i, torch.zeros_like(by_tap[i]))
        source, g, on_grid, dd_on_grid = (z.view(self._grid[: z.dim() + 1]) for z in (h, dc, dh, dd))
        for i, k, near, far, z in self._interpolating_taps(d):
            u, gc, hat = _by_position(source[far]), _by_position(g[near]), _hat(z)
            dv = gc * by_tap[i]  # the gradient of the interpolated values
            gradients[i] += (gc * torch.bmm(hat, u)).sum((0, 1))
            on_grid[far] += _by_frame(torch.bmm(hat.transpose(1, 2), dv), on_grid[far])
            dtau = (_hat_slope(z) * torch.bmm(dv, u.transpose(1, 2))).sum(-1, keepdim=True)  # (n, T, 1)
            d_here = dd_on_grid[near]
            d_here += k * _by_frame(dtau, d_here[..., None])[..., 0]
        da = dd * d_slope
        reads = da.new_zeros(*da.shape, 3)  # [..., n, j]: the gradient of the prediction that read frame n by tap j
        for j in range(3):
            by, read = _overlap(da.shape[1], j - present)
            reads[:, read, :, j] = da[:, by]
        dh += reads @ in_dtype(weights.dilation, self._dtype)
        return reads.flatten(0, 2).t() @ h.flatten(0, 2), da.sum().reshape(1)

    def _interpolating_taps(self, d: Tensor) -> Iterator[tuple[int, int, Index, Index, Tensor]]:
        """(number of the tap, k, outputs, sources, z) of the taps at real-valued frames, a few clips at a time.

        ``d`` is (B, T, N); ``z`` (n, T, T) holds τ_k[t] − n for each of the n positions among the outputs.
        """
        (K, kh, kw), (B, T, H, W, R) = self._kernel, self._grid
        d, frames = d.view(B, T, H, W), torch.arange(T, dtype=d.dtype, device=d.device)
        num_clips, present = max(1, _CHUNK // (T * H * W * R)), self._spec.present(K)
        for b, k in itertools.product(range(0, B, num_clips), range(-present, K - present)):
            if k == 0:
                continue
            clips = slice(b, b + num_clips)
            tau = frames + k * d[clips].permute(0, 2, 3, 1)  # (b, H, W, T)
            for i, j in itertools.product(range(kh), range(kw)):
                y, x = _overlap(H, i - kh // 2), _overlap(W, j - kw // 2)
                z = tau[:, y[0], x[0]].flatten(0, 2)[..., None] - frames
                number = _number((k + present, i, j), self._kernel)
                yield number, k, (clips, slice(None), y[0], x[0]), (clips, slice(None), y[1], x[1]), z


class EagerRows(Rows):
    """`Rows` in the dtype of ``h`` (B, T, N, R), all of them filled but for φ(c), and the views that taps ask for."""

    def __init__(self, h: Tensor, num_prefix_tokens: int, embed_dim: int, taps: Sequence[_Tap]) -> None:
        (B, T, N, R), P = h.shape, num_prefix_tokens
        L, C = P + N, R + PAD
        super().__init__(h.new_zeros(B * T * L, C), embed_dim)
        self.columns = self.matrix.as_strided((B, T, L, R), (T * L * C, L * C, C, 1))
        self.patches = self.columns.narrow(2, P, N)
        self.matrix.as_strided((B * T, N), (L * C, C), P * C + R).fill_(1)
        self.outputs = [self.matrix.as_strided(*tap.outputs_in_rows) for tap in taps]
        self.sources = [self.matrix.as_strided(*tap.sources_in_rows) for tap in taps]


class _Tap(NamedTuple):
    """One that reads whole frames: the outputs it adds to and the sources it reads, all (B, t, h, w, R)."""

    number: int
    outputs: View
    outputs_in_rows: View
    sources: View
    sources_in_rows: View


@functools.lru_cache(256)
def _taps(
    kernel: Tap, grid: tuple[int, ...], num_prefix_tokens: int, distances: Tap, is_causal: bool, is_dynamic: bool
) -> tuple[int, tuple[_Tap, ...]]:
    """The number of the tap that reads the patch itself, and the others at whole frames; ``grid`` is (B, T, H, W, R).

    ``distances`` are those between taps, in frames and patches.
    """
    (K, kh, kw), (B, T, H, W, R) = kernel, grid
    L, C = num_prefix_tokens + H * W, R + PAD
    own = K - 1 if is_causal else K // 2, kh // 2, kw // 2
    alone, in_rows = (T * H * W * R, H * W * R, W * R, R, 1), (T * L * C, L * C, W * C, C, 1)
    found = []
    for number, tap in enumerate(itertools.product(range(K), range(kh), range(kw))):
        if tap == own or (is_dynamic and tap[0] != own[0]):
            continue
        shifts = [(k - o) * distance for k, o, distance in zip(tap, own, distances, strict=True)]
        size = B, *(max(0, n - abs(shift)) for n, shift in zip((T, H, W), shifts, strict=True)), R
        views = []
        for direction in (-1, 1):
            starts = [max(0, direction * shift) if all(size) else 0 for shift in shifts]
            for strides, first in ((alone, 0), (in_rows, num_prefix_tokens * C)):
                views.append((size, strides, first + sum(map(operator.mul, starts, strides[1:4]))))
        found.append(_Tap(number, *views))
    return _number(own, kernel), tuple(found)


def _activate(c: Tensor, activation: str) -> Tensor:
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


def predict_dilation(h: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor]:
    """The dilation ``d = ELU(a) + 1`` (B, T, N) in frames, bounded by ``spec.max_dilation``, and its slope dd/da."""
    assert weights.dilation is not None
    assert weights.dilation_bias is not None
    taps = h @ weights.dilation.to(h.dtype).t()  # (B, T, N, 3)
    present = spec.present(3)
    a = taps[..., present] + weights.dilation_bias.to(h.dtype)
    for j in range(3):
        if j != present:
            by, read = _overlap(h.shape[1], j - present)
            a[:, by] += taps[:, read, :, j]
    d = torch.where(a > 0, a + 1, a.exp())
    slope = torch.where(a > 0, torch.ones_like(a), d)
    if spec.max_dilation is not None:
        slope = slope * (d <= spec.max_dilation)
        d = d.clamp(max=spec.max_dilation)
    return d, slope


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """The outputs i whose source i + shift lies inside, and those sources."""
    shift = max(-size, min(size, shift))
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))


def _number(tap: Tap, kernel: Tap) -> int:
    """Which of all taps it is."""
    _, kh, kw = kernel
    return (tap[0] * kh + tap[1]) * kw + tap[2]


def _by_position(z: Tensor) -> Tensor:
    return z.flatten(2, 3).transpose(1, 2).flatten(0, 1)  # (b, T, H, W, R) -> (b*H*W, T, R)


def _by_frame(z: Tensor, like: Tensor) -> Tensor:
    b, _, H, W = like.shape[:4]
    return z.unflatten(0, (b, H * W)).transpose(1, 2).unflatten(2, (H, W))  # (b*H*W, T, R) -> (b, T, H, W, R)


def _hat(z: Tensor) -> Tensor:
    return (1 - z.abs()).clamp_min(0)


def _hat_slope(z: Tensor) -> Tensor:
    cell = z.floor()
    return (cell == -1).to(z.dtype) - (cell == 0).to(z.dtype)
