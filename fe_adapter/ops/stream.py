"""A causal adapter on a stream: at each frame what the whole clip would give there, at the cost of one frame.

    u_t = x_t·Wdᵀ + bd,   c_t = bc + Σ_a w[K − 1 − a]·u[t − a·d],   y_t = x_t + φ(c_t)·Wuᵀ + bu      a = 0 … K − 1

Before its first frame a clip is zero, and so is the memory of a stream: one that begins again is a row of zeros.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.errors import InputError
from fe_adapter.kernels.spec import AdapterSpec, Weights
from fe_adapter.ops.reference import ACTIVATIONS

_FIRST = 8  # frames there is room for at first


@dataclasses.dataclass
class StreamState:
    """What an adapter remembers of B streams: the hidden rows of their last frames, in a ring.

    Args:
        hidden: (B, S, N, R); frame t is in row ``t % S``. S doubles until it is ``most``.
        most: frames that any tap may ask for; None is all there were, of a dynamic dilation without an upper bound.
        num_frames: how many came, the first numbered 0.
    """

    hidden: Tensor
    most: int | None
    num_frames: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int, int], most: int | None, like: Tensor) -> StreamState:
        """Before the first frame; ``shape`` is (B, N, R), dtype and device are those of ``like``."""
        B, N, R = shape
        return cls(like.new_zeros(B, _FIRST if most is None else min(_FIRST, most), N, R), most)

    def reset(self, streams: Sequence[int] | Tensor | None = None) -> None:
        """Let the ``streams`` (indices, or a mask) begin again; None is all of them."""
        if streams is None:
            self.hidden.zero_()
            self.num_frames = 0
        else:
            self.hidden[torch.as_tensor(streams, device=self.hidden.device)] = 0

    def push(self, u: Tensor) -> None:
        """Remember the hidden rows ``u`` (B, N, R) of the next frame."""
        B, S, N, R = self.hidden.shape
        if self.num_frames == 0:
            self.hidden = self.hidden.to(u.dtype)  # which autocast or x settle
        if (self.hidden.dtype, self.hidden.device, (B, N, R)) != (u.dtype, u.device, tuple(u.shape)):
            raise InputError(
                f"the state is of {B} streams of {N} patches, {R} wide, in {self.hidden.dtype} on "
                f"{self.hidden.device}; the frame gives {tuple(u.shape)} in {u.dtype} on {u.device}"
            )
        if self.num_frames == S and (self.most is None or self.most > S):
            size = 2 * S if self.most is None else min(2 * S, self.most)
            self.hidden = torch.cat([self.hidden, self.hidden.new_zeros(B, size - S, N, R)], 1)
        self.hidden[:, self.num_frames % self.hidden.shape[1]] = u
        self.num_frames += 1

    def read(self, age: Tensor, patch: Tensor, inside: Tensor) -> Tensor:
        """Rows (B, N, R) of each ``patch`` (N,) as it was ``age`` (B or 1, N) frames ago; zero where not ``inside``."""
        B, S, N, R = self.hidden.shape
        inside = inside & (age < S)
        row = (self.num_frames - 1 - torch.where(inside, age, 0)) % S
        index = (row * N + patch)[..., None].expand(B, N, R)
        return torch.where(inside[..., None], self.hidden.flatten(1, 2).gather(1, index), 0)


def most_frames(num_taps: int, dilation: int | None, max_dilation: float | None) -> int | None:
    """How many frames ``num_taps`` taps may ask for, the present one with them; ``dilation`` None is a dynamic one."""
    if dilation is not None:
        return (num_taps - 1) * dilation + 1
    if max_dilation is None:
        return None
    # interpolation reads a frame more, rounding of the product may ask for another; three predict the dilation
    return max(3, math.ceil((num_taps - 1) * max_dilation) + 2)


def update(x: Tensor, weights: Weights, spec: AdapterSpec, state: StreamState) -> Tensor:
    """The adapter's output (B, L, D) at the next frame ``x`` (B, L, D), which ``state`` remembers."""
    weights = weights.to(spec.compute_dtype)
    prefix, patches = x.tensor_split([spec.num_prefix_tokens], dim=1)
    state.push(F.linear(patches.to(spec.compute_dtype), weights.down, weights.down_bias))
    c = _convolved(state, weights, spec)
    phi = ACTIVATIONS[spec.activation](c).to(spec.compute_dtype)
    return torch.cat([prefix, (patches + F.linear(phi, weights.up, weights.up_bias)).to(x.dtype)], 1)


def _convolved(state: StreamState, weights: Weights, spec: AdapterSpec) -> Tensor:
    """``c`` (B, N, R) of the last frame."""
    dtype, device, (K, kh, kw) = spec.accumulate_dtype, state.hidden.device, weights.conv.shape[2:]
    (H, W), (frames, down, across) = spec.grid_size, spec.dilation
    patch = torch.arange(H * W, device=device)
    d = None if weights.dilation is None else _dilation(state, weights, spec, patch)
    c = weights.conv_bias.to(dtype)
    for i, j in itertools.product(range(kh), range(kw)):
        y, x = patch // W + (i - kh // 2) * down, patch % W + (j - kw // 2) * across
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        there = torch.where(inside, y * W + x, 0)
        for k in range(K):
            ago = K - 1 - k
            if d is None or ago == 0:
                u = state.read(torch.full_like(patch, ago * frames)[None], there, inside).to(dtype)
            else:
                age = (ago * d).clamp(max=float(state.hidden.shape[1]))  # from there on all is zero
                whole = age.ceil()
                near, far = (state.read(a.long(), there, inside & (a >= 0)).to(dtype) for a in (whole - 1, whole))
                u = torch.lerp(far, near, (whole - age)[..., None])
            c = c + weights.conv[:, 0, k, i, j].to(dtype) * u
    return c


def _dilation(state: StreamState, weights: Weights, spec: AdapterSpec, patch: Tensor) -> Tensor:
    """``d = ELU(a) + 1`` (B, N) at the last frame, at most ``max_dilation``."""
    assert weights.dilation is not None
    assert weights.dilation_bias is not None
    dtype, everywhere = spec.accumulate_dtype, torch.ones_like(patch, dtype=torch.bool)
    a = weights.dilation_bias.to(dtype)
    for j in range(3):
        u = state.read(torch.full_like(patch, 2 - j)[None], patch, everywhere)
        a = a + u.to(dtype) @ weights.dilation[j].to(dtype)
    d = F.elu(a) + 1
    return d if spec.max_dilation is None else d.clamp(max=spec.max_dilation)
