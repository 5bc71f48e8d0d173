"""Attention over the features of frames, in the place of their mean: a probe that sees their order."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """What a learned token makes of the features of a clip's frames, by one attention over them and itself.

    In the manner of STEP (arXiv 2503.24298): every frame has a learned position, and there is neither an MLP nor a
    residual nor a norm around the attention. STEP attends to all patches of all frames, this to a feature of each.

    Args:
        embed_dim: width D of the features.
        num_frames: frames T of a clip.

    Shape:
        ``(B, T, D)`` -> ``(B, D)``.
    """

    def __init__(self, embed_dim: int, num_frames: int) -> None:
        super().__init__()
        num_heads = next(n for n in range(max(1, embed_dim // 64), 0, -1) if embed_dim % n == 0)
        self.token = nn.Parameter(torch.empty(embed_dim))
        self.positions = nn.Parameter(torch.empty(num_frames, embed_dim))
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        for parameter in (self.token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        token = self.token.expand(features.shape[0], 1, -1)
        tokens = torch.cat([token, features + self.positions], dim=1)
        return self.attention(token, tokens, tokens, need_weights=False)[0].squeeze(1)
