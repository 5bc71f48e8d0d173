"""The temporal convolution of the eager backend, static and dynamic, forward and backward.

Activations are viewed as ``(B, T, H, W, R)``; a kernel without spatial extent uses the grid ``(N, 1)``. A tap reads
its source through slices, so zero padding costs nothing and nothing is copied.

With a dynamic dilation d, the side taps of a patch position read real-valued frame positions τ = t + k·d[t]. Linear
interpolation is then a small matrix per position, ``A_k[t, n] = hat(τ_k[t] − n)`` with ``hat(z) = max(0, 1 − |z|)``,
applied to all channels by a GEMM batched over positions: no gather and no scatter, hence the same bits every time.
``hat'`` is taken from the right, which is what autograd gives for floor and linear interpolation.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.kernels.spec import PAD, AdapterSpec, ConvGradients, Weights

_CHUNK = 2**20  # elements of the clips whose interpolation is computed at a time: few operators, and still in cache

Tap = tuple[int, int, int]
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
    return _activated(h, weights, spec)[0]


def backward_activation(dphi: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor, None]:
    """`activated_rows` again, and the gradient ``dc`` of ``c`` by ``dphi``, that of ``φ(c)``."""
    rows, c = _activated(h, weights, spec)
    return rows, _activation_backward(dphi, c, spec.activation), None


def backward_hidden(
    dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor, state: None
) -> ConvGradients:
    """Write the gradient ``dh`` by ``dc`` into the first R columns of ``out``'s patch rows; returns the others."""
    dh = out[..., : h.shape[-1]]
    dconv, ddilation, ddilation_bias = _conv_backward(dc, h, weights, spec, out=dh[:, :, spec.num_prefix_tokens :])
    return ConvGradients(
        conv=dconv,
        conv_bias=dc.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        down_bias=dh.sum((0, 1, 2), dtype=spec.accumulate_dtype),
        dilation=ddilation,
        dilation_bias=ddilation_bias,
    )


def _activated(h: Tensor, weights: Weights, spec: AdapterSpec) -> tuple[Tensor, Tensor | None]:
    """φ(c) as (B, T, L, R + PAD) with the column of ones, and c (B, T, N, R) where φ's derivative needs it."""
    (B, T, N, R), P = h.shape, spec.num_prefix_tokens
    rows = h.new_empty(B, T, P + N, R + PAD)
    rows.narrow(2, 0, P).zero_()
    rows.narrow(3, R, PAD).zero_()
    of_patches = rows.narrow(2, P, N)
    of_patches.select(3, R).fill_(1)
    patches = of_patches.narrow(3, 0, R)
    if spec.activation == "identity" and h.dtype == spec.accumulate_dtype:
        _conv(h, weights, spec, out=patches)
        return rows, None
    c = torch.empty_like(h, dtype=spec.accumulate_dtype)
    _conv(h, weights, spec, out=c)
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


def _conv(h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor) -> None:
    """Write the convolution c of ``h``, both (B, T, N, R), into ``out``, computing in ``out``'s dtype."""
    w, source, c = _taps_last(weights.conv, out.dtype), _on_grid(h.to(out.dtype), spec), _on_grid(out, spec)
    by_tap = w.flatten(0, 2).unbind()
    torch.addcmul(weights.conv_bias.to(out.dtype), source, by_tap[_number(_own(w, spec), w)], out=c)
    for i, here, there in _integer_taps(w, c, spec, weights):
        _part(c, here).addcmul_(_part(source, there), by_tap[i])
    if weights.dilation is not None:
        d, _ = predict_dilation(h.to(out.dtype), weights, spec)
        for tap, _, here, there, z in _interpolating_taps(w, _on_grid(d, spec), spec):
            c[here].addcmul_(_by_frame(torch.bmm(_hat(z), _by_position(source[there])), c[here]), w[tap])


def _conv_backward(
    dc: Tensor, h: Tensor, weights: Weights, spec: AdapterSpec, out: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Write the gradient of ``h`` into ``out``; return those of the taps, of the dilation's weight and of its bias.

    ``dc``, ``h`` and ``out`` are (B, T, N, R). Sums are taken in ``spec.accumulate_dtype``.
    """
    dtype = spec.accumulate_dtype
    h = h.to(dtype)
    w, source, g = _taps_last(weights.conv, dtype), _on_grid(h, spec), _on_grid(dc.to(dtype), spec)
    dh = _on_grid(out, spec) if out.dtype == dtype else torch.empty_like(g)
    product = torch.empty_like(g)
    own, present = _own(w, spec), spec.present(3)
    by_tap, nothing = w.flatten(0, 2).unbind(), w.new_zeros(w.shape[-1])
    gradients = [nothing] * len(by_tap)
    torch.mul(g, by_tap[_number(own, w)], out=dh)
    gradients[_number(own, w)] = _dot(g, source, product)
    for i, here, there in _integer_taps(w, g, spec, weights):
        g_here = _part(g, here)
        _part(dh, there).addcmul_(g_here, by_tap[i])
        gradients[i] = _dot(g_here, _part(source, there), product)
    dw = torch.stack(gradients).view(w.shape)

    ddilation = ddilation_bias = None
    if weights.dilation is not None:
        d, d_slope = predict_dilation(h, weights, spec)
        dd = torch.zeros_like(d)
        for tap, k, here, there, z in _interpolating_taps(w, _on_grid(d, spec), spec):
            u, gc, hat = _by_position(source[there]), _by_position(g[here]), _hat(z)
            dv = gc * w[tap]  # the gradient of the interpolated values
            dw[tap] += (gc * torch.bmm(hat, u)).sum((0, 1))
            dh[there] += _by_frame(torch.bmm(hat.transpose(1, 2), dv), dh[there])
            dtau = (_hat_slope(z) * torch.bmm(dv, u.transpose(1, 2))).sum(-1, keepdim=True)  # (n, T, 1)
            d_here = _on_grid(dd, spec)[here]
            d_here += k * _by_frame(dtau, d_here[..., None])[..., 0]
        da = dd * d_slope
        reads = da.new_zeros(*da.shape, 3)  # [..., n, j]: the gradient of the prediction that read frame n by tap j
        for j in range(3):
            by, read = _overlap(da.shape[1], j - present)
            reads[:, read, :, j] = da[:, by]
        dh += _on_grid(reads @ weights.dilation.to(dtype), spec)
        ddilation = reads.flatten(0, 2).t() @ h.flatten(0, 2)
        ddilation_bias = da.sum().reshape(1)
    if dh.dtype != out.dtype:
        _on_grid(out, spec).copy_(dh)
    return dw.movedim(-1, 0)[:, None], ddilation, ddilation_bias


def _dot(a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
    """``Σ a·b`` over all dimensions but the last; the product lies without gaps in ``buffer``, for a fast sum."""
    product = buffer.view(-1)[: a.numel()].view(a.shape)
    return torch.mul(a, b, out=product).sum((0, 1, 2, 3))


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


def _on_grid(z: Tensor, spec: AdapterSpec) -> Tensor:
    return z.view(*z.shape[:2], *spec.grid_size, *z.shape[3:])  # (B, T, N, …) -> (B, T, H, W, …)


def _taps_last(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype)[:, 0].movedim(0, -1).contiguous()  # (R, 1, K, kh, kw) -> (K, kh, kw, R)


def _own(w: Tensor, spec: AdapterSpec) -> Tap:
    """The tap that reads the patch itself."""
    K, kh, kw, _ = w.shape
    return spec.present(K), kh // 2, kw // 2


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """The outputs i whose source i + shift lies inside, and those sources."""
    shift = max(-size, min(size, shift))
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))


def _number(tap: Tap, w: Tensor) -> int:
    """Which of all taps it is."""
    _, kh, kw, _ = w.shape
    return (tap[0] * kh + tap[1]) * kw + tap[2]


def _part(z: Tensor, part: Part) -> Tensor:
    for dim, start, length in part:  # an index of slices takes the host several times as long
        z = z.narrow(dim, start, length)
    return z


def _integer_taps(w: Tensor, z: Tensor, spec: AdapterSpec, weights: Weights) -> tuple[tuple[int, Part, Part], ...]:
    """(number of the tap, outputs, sources) of all taps that read whole frames, `_own` left out."""
    kernel, grid, own = tuple(w.shape[:3]), tuple(z.shape[1:4]), _own(w, spec)
    return _parts_of_taps(kernel, grid, spec.dilation, own, dynamic=weights.dilation is not None)


@functools.lru_cache(256)
def _parts_of_taps(
    kernel: Tap, grid: Tap, distances: Tap, own: Tap, dynamic: bool
) -> tuple[tuple[int, Part, Part], ...]:
    found = []
    numbers = itertools.product(*map(range, kernel))
    for number, tap in enumerate(numbers):
        if tap == own or (dynamic and tap[0] != own[0]):
            continue
        outputs, sources = [], []
        for dim, (size, k, o, distance) in enumerate(zip(grid, tap, own, distances, strict=True), 1):
            if shift := (k - o) * distance:
                length = max(0, size - abs(shift))
                outputs.append((dim, min(max(0, -shift), size), length))
                sources.append((dim, min(max(0, shift), size), length))
        found.append((number, tuple(outputs), tuple(sources)))
    return tuple(found)


def _interpolating_taps(w: Tensor, d: Tensor, spec: AdapterSpec) -> Iterator[tuple[Tap, int, Index, Index, Tensor]]:
    """(tap, k, outputs, sources, z) of the taps at real-valued frames, a few clips at a time.

    ``d`` is (B, T, H, W); ``z`` (n, T, T) holds τ_k[t] − n for each of the n positions among the outputs.
    """
    (K, kh, kw, R), (B, T, H, W) = w.shape, d.shape
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
            yield (k + present, i, j), k, (clips, slice(None), y[0], x[0]), (clips, slice(None), y[1], x[1]), z


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
