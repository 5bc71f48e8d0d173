"""What the adapter is measured against: other ways to write a static one, each one decorated function.

All take tokens ``(B*T, L, D)``, one prefix token, and a temporal kernel; ``layer`` measures every one of `RIVALS`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter import FEAdapter

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]  # (u (B, T, N, R), weight (R, K), bias (R,)) -> like u
Rival = Callable[[FEAdapter], nn.Module]
RIVALS: dict[str, Rival] = {}


def rival(name: str) -> Callable[[Rival], Rival]:
    """A decorator: the function makes a module out of a static adapter, with the same weights, and is measured.

    It raises an ImportError where a library that it needs is not installed.
    """

    def register(build: Rival) -> Rival:
        RIVALS[name] = build
        return build

    return register


class STAdapter(nn.Module):
    """The adapter in the formulation of ST-Adapter (arXiv 2206.13559): ``nn.Conv3d`` between two permutes.

    The residual is added in place as published: the caller's ``x`` is overwritten. With ``channels_last`` the permuted
    tensor goes to the convolution as it is, which is what that memory format means, and so do the weights.
    """

    def __init__(self, adapter: FEAdapter, channels_last: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = copy.deepcopy(adapter.down_proj), copy.deepcopy(adapter.up_proj)
        self.conv = copy.deepcopy(adapter.temporal_conv)
        self.conv.padding = tuple(size // 2 for size in adapter.kernel_size)
        self.num_frames = adapter.num_frames
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.conv.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        BT, L, _ = x.shape
        T, side, R = self.num_frames, round((L - 1) ** 0.5), self.fc1.out_features
        u = self.fc1(x[:, 1:]).view(BT // T, T, side, side, R)
        c = self.conv(u.permute(0, 4, 1, 2, 3).contiguous(memory_format=self.memory_format))
        delta = self.fc2(c.permute(0, 2, 3, 4, 1).contiguous().view(BT, L - 1, R))
        x[:, 1:, :] += delta
        return x


class Formulation(nn.Module):
    """A static adapter whose convolution is written another way, or left out (None); the rest is plain PyTorch."""

    def __init__(self, adapter: FEAdapter, convolution: Convolution | None) -> None:
        super().__init__()
        self.down_proj, self.up_proj, self.num_frames = adapter.down_proj, adapter.up_proj, adapter.num_frames
        self.temporal_conv: Any = None if convolution is None else adapter.temporal_conv
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        u = self.down_proj(x[:, 1:])
        if self.convolution is not None:
            weight, bias = self.temporal_conv.weight.flatten(1), self.temporal_conv.bias
            u = self.convolution(u.unflatten(0, (-1, self.num_frames)), weight, bias).flatten(0, 1)
        return torch.cat([x[:, :1], x[:, 1:] + self.up_proj(u)], dim=1)


@rival("st-adapter")
def st_adapter(adapter: FEAdapter) -> STAdapter:
    return STAdapter(adapter)


@rival("st-adapter channels-last")
def st_adapter_channels_last(adapter: FEAdapter) -> STAdapter:
    return STAdapter(adapter, channels_last=True)


@rival("shifted adds")
def shifted_adds(adapter: FEAdapter) -> Formulation:
    """The convolution as a sum of shifted products, differentiated by autograd."""

    def convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        K, T = weight.shape[1], u.shape[1]
        padded = F.pad(u, (0, 0, 0, 0, K // 2, K // 2))
        return bias + sum(weight[:, k] * padded[:, k : k + T] for k in range(K))

    return Formulation(adapter, convolution)


@rival("causal-conv1d")
def causal_conv1d(adapter: FEAdapter) -> Formulation:
    """The convolution by causal-conv1d, in its layout with channels last."""
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn  # x (batch, dim, length)

    def convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _centred(lambda x: function(x.transpose(1, 2), weight, bias).transpose(1, 2), u, weight)

    return Formulation(adapter, convolution)


@rival("fla")
def fla_conv1d(adapter: FEAdapter) -> Formulation:
    """The convolution by flash-linear-attention."""
    function = importlib.import_module("fla.modules.convolution").causal_conv1d  # x (batch, length, dim)

    def convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _centred(lambda x: function(x, weight, bias)[0], u, weight)

    return Formulation(adapter, convolution)


def _centred(causal: Callable[[Tensor], Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """A centred convolution of ``u`` (B, T, N, R) by one over (B*N, T, R) that only looks back."""
    B, half = len(u), weight.shape[1] // 2
    by_position = F.pad(u, (0, 0, 0, 0, 0, half)).transpose(1, 2).flatten(0, 1)  # frames of zeros behind
    return causal(by_position)[:, half:].unflatten(0, (B, -1)).transpose(1, 2)


def no_convolution(adapter: FEAdapter) -> Formulation:
    """A floor, not a rival: it does less."""
    return Formulation(adapter, None)


class SixProducts:
    """A floor: the six matrix products no adapter can avoid, on ready contiguous rows of patch tokens."""

    def __init__(self, rows: int, embed_dim: int, bottleneck: int, device: torch.device, dtype: torch.dtype) -> None:
        self.x, self.dy = torch.randn(2, rows, embed_dim, device=device, dtype=dtype)
        self.c, self.dh = torch.randn(2, rows, bottleneck, device=device, dtype=dtype)
        self.down, up = torch.randn(2, bottleneck, embed_dim, device=device, dtype=dtype)
        self.up = up.t().contiguous()

    def forward(self, _: object = None) -> tuple[Tensor, ...]:
        return F.linear(self.x, self.down), F.linear(self.c, self.up)

    def backward(self, _: object = None) -> tuple[Tensor, ...]:
        return self.dy @ self.up, self.dy.t() @ self.c, self.dh.t() @ self.x, self.dh @ self.down

    def both(self, _: object = None) -> tuple[Tensor, ...]:
        return self.forward() + self.backward()
