"""One adapted block of a frozen ViT-B, forward and backward: what an adapter adds to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.cases.rivals import no_convolution, st_adapter
from bench.cases.work import at_work, compiled
from bench.measure.case import DTYPES, Point, Provider

BASELINE = "st-adapter"


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [Point({"B": 1, "T": 4, "N": 16, "D": 64, "R": 16, "dtype": "float32"}, rounds=3)]
    size: dict[str, Any] = {"T": 8, "N": 196, "D": 768}
    if device.type == "cpu":
        return [Point(size | {"B": 2, "dtype": "float32", "R": R}, rounds=8) for R in (64, 384)]
    return [Point(size | {"B": 8, "dtype": "bfloat16", "R": R}, rounds=50, thorough=True) for R in (64, 384)]


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    work, (static, fused_static), (dynamic, fused_dynamic) = at_work(point, device, "both")
    block = functools.cache(lambda: _frozen_block(point["D"]).to(device, DTYPES[point["dtype"]]))
    adapted = functools.cache(lambda adapter: nn.Sequential(adapter, block()))  # a reference is computed once

    def provider(build: Callable[[], nn.Module], reference: nn.Module, role: str = "rival") -> Provider:
        return Provider(lambda: work.contender(nn.Sequential(build(), block()), adapted(reference)), role)

    def graphed(build: Callable[[], nn.Module], reference: nn.Module, role: str) -> Provider:
        return Provider(lambda: work.graphed_contender(nn.Sequential(build(), block()), adapted(reference)), role)

    bare = no_convolution(static)
    found = {
        "st-adapter": provider(partial(st_adapter, static), static),
        "plain dynamic": provider(lambda: dynamic, dynamic),
        "static": provider(lambda: fused_static, static, "ours"),
        "dynamic": provider(lambda: fused_dynamic, dynamic, "ours"),
        "no convolution": provider(lambda: bare, bare, "floor"),
        "no adapter": provider(nn.Identity, nn.Identity(), "floor"),
    }
    if point.thorough:
        found["static graphed"] = graphed(lambda: fused_static, static, "ours")
        found["static compiled"] = provider(lambda: compiled(fused_static), static, "ours")
        found["st-adapter graphed"] = graphed(partial(st_adapter, static), static, "rival")
        found["st-adapter compiled"] = provider(lambda: compiled(st_adapter(static)), static)
    return found


def _frozen_block(embed_dim: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    return Block(embed_dim, num_heads=embed_dim // 64, qkv_bias=True).requires_grad_(False).eval()
