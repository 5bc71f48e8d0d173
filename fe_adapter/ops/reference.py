"""The adapter as its equations, in plain differentiable PyTorch: the yardstick of every backend.

Shares no code with the backends. Dtype-preserving, usable in float64. The interpolation is the gather form (floor, two
reads, lerp), where the backends use hat functions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.kernels.spec import AdapterSpec, Weights, as_clips

ACTIVATIONS = {
    "identity": lambda c: c,
    "relu": F.relu,
    "gelu": lambda c: F.gelu(c, approximate="tanh"),
    "silu": F.silu,
}


def adapter(x: Tensor, weights: Weights, spec: AdapterSpec, num_frames: int) -> Tensor:
    """``x`` (B, T, L, D) or (B*T, L, D) -> the same shape and dtype; no view, which FSDP2 warns of."""
    weights = weights.to(spec.compute_dtype)
    P, clips = spec.num_prefix_tokens, as_clips(x, num_frames)
    patches = clips[:, :, P:]
    u = F.linear(patches.to(spec.compute_dtype), weights.down, weights.down_bias)  # (B, T, N, R)
    c = temporal_conv(u, weights, spec)
    delta = F.linear(ACTIVATIONS[spec.activation](c), weights.up, weights.up_bias)
    adapted = (patches + delta).to(x.dtype)
    return torch.cat([x[..., :P, :], adapted.reshape(*x.shape[:-2], *adapted.shape[2:])], dim=-2)


def temporal_conv(u: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``c[t] = bc + Σ_k w[k]·u[t + k·d]``, zero outside the clip and outside the patch grid; causal: no k above 0."""
    _, T, _, R = u.shape
    K, kh, kw = weights.conv.shape[2:]
    H, W = spec.grid_size
    frames, down, across = spec.dilation  # between taps
    present = spec.present(K)
    top, left = kh // 2 * down, kw // 2 * across
    grid = F.pad(u.unflatten(2, (H, W)), (0, 0, left, left, top, top))
    t = torch.arange(T, dtype=spec.accumulate_dtype, device=u.device).view(T, 1)
    d = frames if weights.dilation is None else dilation(u.to(t.dtype), weights, spec)  # (B, T, N)
    c = weights.conv_bias
    for i in range(kh):
        for j in range(kw):
            y, x = i * down, j * across
            v = grid[:, :, y : y + H, x : x + W].reshape(u.shape)
            for k in range(K):
                c = c + weights.conv[:, 0, k, i, j] * at_frames(v, (t + (k - present) * d).expand(u.shape[:3]))
    return c.reshape(*u.shape[:3], R)


def dilation(u: Tensor, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``d = ELU(a) + 1`` (B, T, N), ``a`` a convolution of three frames, at most ``max_dilation``."""
    assert weights.dilation is not None
    assert weights.dilation_bias is not None
    T, present = u.shape[1], spec.present(3)
    padded = F.pad(u, (0, 0, 0, 0, present, 2 - present))
    a = weights.dilation_bias.to(u.dtype)
    for j in range(3):
        a = a + padded[:, j : j + T] @ weights.dilation[j].to(u.dtype)
    d = F.elu(a) + 1
    if spec.max_dilation is None:
        return d
    return torch.where(d > spec.max_dilation, spec.max_dilation, d)  # where they are equal, the gradient passes


def at_frames(u: Tensor, tau: Tensor) -> Tensor:
    """``u`` (B, T, N, R) read at the real-valued frames ``tau`` (B, T, N): linear interpolation, zero outside."""
    T = u.shape[1]
    low = tau.detach().floor()
    fraction = (tau - low)[..., None]

    def read(frame: Tensor) -> Tensor:
        inside = (frame >= 0) & (frame < T)
        index = torch.where(inside, frame, 0).long()[..., None].expand(u.shape)
        return torch.gather(u, 1, index) * inside[..., None]

    return ((1 - fraction) * read(low) + fraction * read(low + 1)).to(u.dtype)
