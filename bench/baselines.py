"""What the adapter is measured against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter import FEAdapter


class STAdapter(nn.Module):
    """The adapter in the formulation of ST-Adapter (arXiv 2206.13559): ``nn.Conv3d`` between two permutes.

    Same parameters as a static `FEAdapter`, one prefix token, a temporal kernel (K, 1, 1). The residual is added in
    place as published: the caller's ``x`` (B*T, L, D) is overwritten.
    """

    def __init__(self, embed_dim: int, bottleneck: int, num_frames: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, bottleneck)
        size = (kernel_size, 1, 1)
        self.conv = nn.Conv3d(bottleneck, bottleneck, size, padding=(kernel_size // 2, 0, 0), groups=bottleneck)
        self.fc2 = nn.Linear(bottleneck, embed_dim)
        self.num_frames = num_frames

    def forward(self, x: Tensor) -> Tensor:
        BT, L, _ = x.shape
        T, side, R = self.num_frames, round((L - 1) ** 0.5), self.fc1.out_features
        u = self.fc1(x[:, 1:]).view(BT // T, T, side, side, R)
        c = self.conv(u.permute(0, 4, 1, 2, 3).contiguous())
        delta = self.fc2(c.permute(0, 2, 3, 4, 1).contiguous().view(BT, L - 1, R))
        x[:, 1:, :] += delta
        return x

    def load(self, adapter: FEAdapter) -> STAdapter:
        """Take over the weights of a static adapter."""
        names = (("fc1", "down_proj"), ("conv", "temporal_conv"), ("fc2", "up_proj"))
        for mine, theirs in names:
            getattr(self, mine).load_state_dict(getattr(adapter, theirs).state_dict())
        return self


class SixProducts:
    """The floor: the six matrix products no adapter can avoid, on ready contiguous rows of patch tokens."""

    def __init__(self, rows: int, embed_dim: int, bottleneck: int) -> None:
        self.x, self.dy = torch.randn(rows, embed_dim), torch.randn(rows, embed_dim)
        self.c, self.dh = torch.randn(rows, bottleneck), torch.randn(rows, bottleneck)
        self.down, self.up = torch.randn(bottleneck, embed_dim), torch.randn(embed_dim, bottleneck)

    def __call__(self, _: object = None) -> tuple[Tensor, ...]:
        return (
            F.linear(self.x, self.down),
            F.linear(self.c, self.up),
            self.dy @ self.up,
            self.dy.t() @ self.c,
            self.dh.t() @ self.x,
            self.dh @ self.down,
        )
