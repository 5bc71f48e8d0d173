"""One adapted block of a frozen ViT-B, forward and backward: what an adapter adds to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.cases.rivals import Formulation, STAdapter
from bench.cases.work import Work, compiled
from bench.measure.case import DTYPES, Point, Provider
from bench.proof.agreement import pair, settled_pair

BASELINE = "st-adapter"


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [Point({"B": 1, "T": 4, "N": 16, "D": 64, "R": 16, "dtype": "float32"}, rounds=3)]
    size: dict[str, Any] = {"T": 8, "N": 196, "D": 768}
    size |= {"B": 2, "dtype": "float32"} if device.type == "cpu" else {"B": 8, "dtype": "bfloat16"}
    rounds = 8 if device.type == "cpu" else 50
    return [Point(size | {"R": R}, rounds, thorough=device.type == "cuda") for R in (64, 384)]


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    B, T, N, D, R = (point[name] for name in "BTNDR")
    dtype = DTYPES[point["dtype"]]
    torch.manual_seed(0)
    work = Work.random((B * T, N + 1, D), "both", device, dtype)
    block = functools.cache(lambda: _frozen_block(D).to(device, dtype))
    adapted = functools.cache(lambda adapter: _adapted(adapter, block()))
    options: dict[str, Any] = {"num_frames": T, "device": device, "dtype": dtype}
    static, fused_static = pair(D, R, dilation=1, **options)
    dynamic, fused_dynamic = settled_pair(D, R, **options)
    without = Formulation(static, None)

    def provider(build: Callable[[], nn.Module], reference: nn.Module, role: str = "rival") -> Provider:
        return Provider(lambda: work.contender(_adapted(build(), block()), adapted(reference)), role)

    def st_adapter() -> STAdapter:
        return STAdapter(D, R, T).to(device, dtype).load(static)

    found = {
        "st-adapter": provider(st_adapter, static),
        "plain dynamic": provider(lambda: dynamic, dynamic),
        "static": provider(lambda: fused_static, static, "ours"),
        "dynamic": provider(lambda: fused_dynamic, dynamic, "ours"),
        "no convolution": provider(lambda: without, without, "floor"),
        "no adapter": provider(nn.Identity, nn.Identity(), "floor"),
    }
    if point.thorough:
        for name, build, role in (("static", lambda: fused_static, "ours"), ("st-adapter", st_adapter, "rival")):
            found[f"{name} graphed"] = Provider(
                lambda build=build: work.graphed_contender(_adapted(build(), block())), role
            )
            found[f"{name} compiled"] = provider(lambda build=build: compiled(build()), static, role)
    return found


def _frozen_block(embed_dim: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    return Block(embed_dim, num_heads=embed_dim // 64, qkv_bias=True).requires_grad_(False).eval()


def _adapted(adapter: nn.Module, block: nn.Module) -> nn.Sequential:
    return nn.Sequential(adapter, block)
