"""The temporal convolution of the eager backend, static and dynamic, forward and backward.

Activations are ``(B, T, N, R)``, viewed as ``(B, T, H, W, R)`` where the kernel has an extent on the grid, or the
dilation is dynamic, then also on the grid ``(N, 1)``. A tap reads its source through slices, so zero padding costs
nothing and nothing is copied.

With a dynamic dilation d, the side taps of a patch position read real-valued frame positions τ = t + k·d[t]. Linear
interpolation is then a small matrix per position, ``A_k[t, n] = hat(τ_k[t] − n)`` with ``hat(z) = max(0, 1 − |z|)``,
applied to all channels by a GEMM batched over positions: no gather and no scatter, hence the same bits every time.
``hat'`` is taken from the right, which is what autograd gives for floor and linear interpolation.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights
from fe_adapter.ops.products import in_dtype

_ALL_BUT_LAST = (0, 1, 2, 3)
_CHUNK = 2**20  # elements of the clips whose interpolation is computed at a time: few operators, and still in cache

Tap = tuple[int, ...]  # (t, h, w)
Index = tuple[int | slice, ...]
Part = tuple[tuple[int, int, int], ...]  # dimensions of which not all is meant: which, from where, how much


def cast(weights: Weights, dtype: torch.dtype) -> Tensor:
    """All weights in ``dtype``, flat: see `Weights.views`."""
    flat = weights.down.new_zeros(weights.flat_starts()[-1], dtype=dtype)
    for part, p in zip(weights.views(flat), weights, strict=True):
        if p is not None and part is not None:
            part.copy_(p)
    return flat


def activated_rows(h: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``[φ(c) | 1 | 0 …]`` (B, T, L, R + PAD) of the hidden ``h`` (B, T, N, R), 0 on prefix rows."""
    return _activated(h, weights, spec, _by_tap(weights, spec))[0]


def backward_activation(
    dphi: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`activated_rows` again; the gradient ``dc`` of ``c`` by ``dphi``, that of ``φ(c)``; and the taps."""
    by_tap = _by_tap(weights, spec)
    rows, c = _activated(h, weights, spec, by_tap)
    return rows, _activation_backward(dphi, c, spec.activation), by_tap


def backward_hidden(
    dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor, state: tuple[Tensor, ...]
) -> ConvGradients:
    """Write the gradient ``dh`` by ``dc`` into the first R columns of ``out``'s patch rows; returns the others."""
    P, N, R = spec.num_prefix_tokens, *h.shape[2:]
    dh = out.narrow(3, 0, R)
    dconv, ddilation, ddilation_bias = _conv_backward(dc, h, weights, spec, state, out=dh.narrow(2, P, N))
    return ConvGradients(
        conv=dconv,
        conv_bias=dc.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        down_bias=dh.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        dilation=ddilation,
        dilation_bias=ddilation_bias,
    )


def _activated(
    h: Tensor, weights: Weights, spec: AdapterSpec, by_tap: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None]:
    """φ(c) as (B, T, L, R + PAD) with the column of ones, and c (B, T, N, R) where φ's derivative needs it."""
    (B, T, N, R), P = h.shape, spec.num_prefix_tokens
    L, C = P + N, R + PAD
    rows = h.new_zeros(B, T, L, C)
    rows.as_strided((B * T, N), (L * C, C), P * C + R).fill_(1)
    patches = rows.as_strided((B, T, N, R), (T * L * C, L * C, C, 1), P * C)
    if spec.activation == "identity" and h.dtype == spec.accumulate_dtype:
        _conv(h, weights, spec, by_tap, out=patches)
        return rows, None
    c = torch.empty_like(h, dtype=spec.accumulate_dtype)
    _conv(h, weights, spec, by_tap, out=c)
    patches.copy_(_activate(c, spec.activation))
    return rows, c


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


def _conv(h: Tensor, weights: Weights, spec: AdapterSpec, by_tap: tuple[Tensor, ...], out: Tensor) -> None:
    """Write the convolution c of ``h``, both (B, T, N, R), into ``out``, computing in ``out``'s dtype."""
    kernel, taps = weights.conv.shape[2:], _integer_taps(h, weights, spec)
    h = in_dtype(h, out.dtype)
    source, c = _on_grid(h, taps.grid), _on_grid(out, taps.grid)
    torch.addcmul(in_dtype(weights.conv_bias, out.dtype), source, by_tap[taps.own], out=c)
    for i, here, there in taps.others:
        _part(c, here).addcmul_(_part(source, there), by_tap[i])
    if weights.dilation is not None:
        d, _ = predict_dilation(h, weights, spec)
        for i, _, near, far, z in _interpolating_taps(kernel, _on_grid(d, taps.grid), h.shape[-1], spec):
            values = _by_frame(torch.bmm(_hat(z), _by_position(source[far])), c[near])
            c[near].addcmul_(values, by_tap[i])


def _conv_backward(
    dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, by_tap: tuple[Tensor, ...], out: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Write the gradient of ``h`` into ``out``; return those of the taps, of the dilation's weight and of its bias.

    ``dc``, ``h`` and ``out`` are (B, T, N, R). Sums are taken in ``spec.accumulate_dtype``.
    """
    dtype, kernel, taps = spec.accumulate_dtype, weights.conv.shape[2:], _integer_taps(h, weights, spec)
    h = in_dtype(h, dtype)
    source, g = _on_grid(h, taps.grid), _on_grid(in_dtype(dc, dtype), taps.grid)
    dh = _on_grid(out, taps.grid) if out.dtype == dtype else torch.empty_like(g)
    product = torch.empty_like(g)
    dw = h.new_zeros(len(by_tap), h.shape[-1])
    gradients = dw.unbind()
    torch.mul(g, by_tap[taps.own], out=dh)
    _dot(g, source, product, out=gradients[taps.own])
    for i, here, there in taps.others:
        g_here = _part(g, here)
        _part(dh, there).addcmul_(g_here, by_tap[i])
        _dot(g_here, _part(source, there), product, out=gradients[i])

    ddilation = ddilation_bias = None
    if weights.dilation is not None:
        d, d_slope = predict_dilation(h, weights, spec)
        dd, present = torch.zeros_like(d), spec.present(3)
        for i, k, near, far, z in _interpolating_taps(kernel, _on_grid(d, taps.grid), h.shape[-1], spec):
            u, gc, hat = _by_position(source[far]), _by_position(g[near]), _hat(z)
            dv = gc * by_tap[i]  # the gradient of the interpolated values
            gradients[i].add_((gc * torch.bmm(hat, u)).sum((0, 1)))
            dh[far] += _by_frame(torch.bmm(hat.transpose(1, 2), dv), dh[far])
            dtau = (_hat_slope(z) * torch.bmm(dv, u.transpose(1, 2))).sum(-1, keepdim=True)  # (n, T, 1)
            d_here = _on_grid(dd, taps.grid)[near]
            d_here += k * _by_frame(dtau, d_here[..., None])[..., 0]
        da = dd * d_slope
        reads = da.new_zeros(*da.shape, 3)  # [..., n, j]: the gradient of the prediction that read frame n by tap j
        for j in range(3):
            by, read = _overlap(da.shape[1], j - present)
            reads[:, read, :, j] = da[:, by]
        dh += _on_grid(reads @ in_dtype(weights.dilation, dtype), taps.grid)
        ddilation = reads.flatten(0, 2).t() @ h.flatten(0, 2)
        ddilation_bias = da.sum().reshape(1)
    if dh.dtype != out.dtype:
        _on_grid(out, taps.grid).copy_(dh)
    return dw.t().reshape(weights.conv.shape), ddilation, ddilation_bias


def _dot(a: Tensor, b: Tensor, buffer: Tensor, out: Tensor) -> None:
    """``Σ a·b`` over all dimensions but the last; the product lies without gaps in ``buffer``, for a fast sum."""
    product = buffer.as_strided(a.shape, _gapless(a.shape))
    torch.sum(torch.mul(a, b, out=product), _ALL_BUT_LAST[: a.dim() - 1], out=out)


@functools.lru_cache(256)
def _gapless(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return tuple(itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1))[::-1]


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


def _on_grid(z: Tensor, grid: Tap | None) -> Tensor:
    return z if grid is None else z.view(*z.shape[:2], *grid, *z.shape[3:])  # (B, T, N, …) -> (B, T, H, W, …)


def _by_tap(weights: Weights, spec: AdapterSpec) -> tuple[Tensor, ...]:
    """(R, 1, K, kh, kw) as K·kh·kw of (R,), in the dtype in which convolutions are computed."""
    return in_dtype(weights.conv, spec.accumulate_dtype).flatten(1).t().contiguous().unbind()


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """The outputs i whose source i + shift lies inside, and those sources."""
    shift = max(-size, min(size, shift))
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))


def _number(tap: Tap, kernel: Tap) -> int:
    """Which of all taps it is."""
    _, kh, kw = kernel
    return (tap[0] * kh + tap[1]) * kw + tap[2]


def _part(z: Tensor, part: Part) -> Tensor:
    for dim, start, length in part:  # an index of slices takes the host several times as long
        z = z.narrow(dim, start, length)
    return z


class _Taps(NamedTuple):
    """Those that read whole frames.

    Args:
        grid: (H, W) of the patches; None where neither taps nor interpolation ask for it.
        own: the number of the tap that reads the patch itself.
        others: of each its number, the outputs it adds to and the sources it reads.
    """

    grid: Tap | None
    own: int
    others: tuple[tuple[int, Part, Part], ...]


def _integer_taps(h: Tensor, weights: Weights, spec: AdapterSpec) -> _Taps:
    is_dynamic, kernel, T = weights.dilation is not None, weights.conv.shape[2:], h.shape[1]
    return _taps(kernel, (T, *spec.grid_size), spec.dilation, spec.present(kernel[0]), is_dynamic)


@functools.lru_cache(256)
def _taps(kernel: Tap, grid: Tap, distances: Tap, present: int, is_dynamic: bool) -> _Taps:
    own, found = (present, kernel[1] // 2, kernel[2] // 2), []
    numbers = itertools.product(*map(range, kernel))
    for number, tap in enumerate(numbers):
        if tap == own or (is_dynamic and tap[0] != present):
            continue
        outputs, sources = [], []
        for dim, (size, k, o, distance) in enumerate(zip(grid, tap, own, distances, strict=True), 1):
            if shift := (k - o) * distance:
                length = max(0, size - abs(shift))
                outputs.append((dim, min(max(0, -shift), size), length))
                sources.append((dim, min(max(0, shift), size), length))
        found.append((number, tuple(outputs), tuple(sources)))
    is_flat = tuple(kernel[1:]) == (1, 1) and not is_dynamic
    return _Taps(None if is_flat else grid[1:], _number(own, kernel), tuple(found))


def _interpolating_taps(
    kernel: Tap, d: Tensor, R: int, spec: AdapterSpec
) -> Iterator[tuple[int, int, Index, Index, Tensor]]:
    """(number of the tap, k, outputs, sources, z) of the taps at real-valued frames, a few clips at a time.

    ``d`` is (B, T, H, W); ``z`` (n, T, T) holds τ_k[t] − n for each of the n positions among the outputs.
    """
    (K, kh, kw), (B, T, H, W) = kernel, d.shape
    frames = torch.arange(T, dtype=d.dtype, device=d.device)
    num_clips, present = max(1, _CHUNK // (T * H * W * R)), spec.present(K)
    for b, k in itertools.product(range(0, B, num_clips), range(-present, K - present)):
        if k == 0:
            continue
        clips = slice(b, b + num_clips)
        tau = frames + k * d[clips].permute(0, 2, 3, 1)  # (b, H, W, T)
        for i, j in itertools.product(range(kh), range(kw)):
            y, x = _overlap(H, i - kh // 2), _overlap(W, j - kw // 2)
            z = tau[:, y[0], x[0]].flatten(0, 2)[..., None] - frames
            number = _number((k + present, i, j), kernel)
            yield number, k, (clips, slice(None), y[0], x[0]), (clips, slice(None), y[1], x[1]), z


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
