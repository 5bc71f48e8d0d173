"""What the adapter is measured against. All take tokens ``(B*T, L, D)``, one prefix token, and a temporal kernel."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter import FEAdapter


class STAdapter(nn.Module):
    """The adapter in the formulation of ST-Adapter (arXiv 2206.13559): ``nn.Conv3d`` between two permutes.

    Same parameters as a static `FEAdapter`, one prefix token, a temporal kernel (K, 1, 1). The residual is added in
    place as published: the caller's ``x`` (B*T, L, D) is overwritten. With ``channels_last`` the permuted tensor goes
    to the convolution as it is, which is what that memory format means, and so do the weights.
    """

    def __init__(
        self, embed_dim: int, bottleneck: int, num_frames: int, kernel_size: int = 3, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, bottleneck)
        size = (kernel_size, 1, 1)
        self.conv = nn.Conv3d(bottleneck, bottleneck, size, padding=(kernel_size // 2, 0, 0), groups=bottleneck)
        self.fc2 = nn.Linear(bottleneck, embed_dim)
        self.num_frames = num_frames
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

    def load(self, adapter: FEAdapter) -> STAdapter:
        """Take over the weights of a static adapter."""
        names = (("fc1", "down_proj"), ("conv", "temporal_conv"), ("fc2", "up_proj"))
        for mine, theirs in names:
            getattr(self, mine).load_state_dict(getattr(adapter, theirs).state_dict())
        return self


class Formulation(nn.Module):
    """A static adapter whose convolution is written another way; the rest is plain PyTorch.

    Args:
        adapter: whose weights it shares.
        convolution: ``(u (B, T, N, R), weight (R, K), bias (R,)) -> (B, T, N, R)``; None leaves it out.
    """

    def __init__(self, adapter: FEAdapter, convolution: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.down_proj, self.up_proj, self.num_frames = adapter.down_proj, adapter.up_proj, adapter.num_frames
        self.temporal_conv = None if convolution is None else adapter.temporal_conv
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        u = self.down_proj(x[:, 1:])
        if self.convolution is not None:
            weight, bias = self.temporal_conv.weight.flatten(1), self.temporal_conv.bias
            u = self.convolution(u.unflatten(0, (-1, self.num_frames)), weight, bias).flatten(0, 1)
        return torch.cat([x[:, :1], x[:, 1:] + self.up_proj(u)], dim=1)


def shifted_adds(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution as a sum of shifted products, differentiated by autograd."""
    K, T = weight.shape[1], u.shape[1]
    padded = F.pad(u, (0, 0, 0, 0, K // 2, K // 2))
    return bias + sum(weight[:, k] * padded[:, k : k + T] for k in range(K))


def causal_conv1d() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The convolution by causal-conv1d, in its layout with channels last; ImportError where it is not installed."""
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn  # x (batch, dim, length)
    return lambda u, weight, bias: _causal(
        lambda x: function(x.transpose(1, 2), weight, bias).transpose(1, 2), u, weight
    )


def fla_conv1d() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The convolution by flash-linear-attention; ImportError where it is not installed."""
    function = importlib.import_module("fla.modules.convolution").causal_conv1d  # x (batch, length, dim)
    return lambda u, weight, bias: _causal(lambda x: function(x, weight, bias)[0], u, weight)


def _causal(convolve: Callable[[Tensor], Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """A centred convolution of ``u`` (B, T, N, R) by one over (B*N, T, R) that only looks back."""
    B, half = len(u), weight.shape[1] // 2
    by_position = F.pad(u, (0, 0, 0, 0, 0, half)).transpose(1, 2).flatten(0, 1)  # frames of zeros behind
    return convolve(by_position)[:, half:].unflatten(0, (B, -1)).transpose(1, 2)


class SixProducts:
    """The floor: the six matrix products no adapter can avoid, on ready contiguous rows of patch tokens."""

    def __init__(self, rows: int, embed_dim: int, bottleneck: int, device: torch.device, dtype: torch.dtype) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        self.x, self.dy, self.c, self.dh = (
            random(rows, width) for width in (embed_dim, embed_dim, bottleneck, bottleneck)
        )
        self.down, self.up = random(bottleneck, embed_dim), random(embed_dim, bottleneck)

    def forward(self, _: object = None) -> tuple[Tensor, ...]:
        return F.linear(self.x, self.down), F.linear(self.c, self.up)

    def backward(self, _: object = None) -> tuple[Tensor, ...]:
        return self.dy @ self.up, self.dy.t() @ self.c, self.dh.t() @ self.x, self.dh @ self.down

    def both(self, _: object = None) -> tuple[Tensor, ...]:
        return self.forward() + self.backward()
