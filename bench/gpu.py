"""A first look at a GPU: is every kernel right on it, and then, how fast. Needs a checkout, torch and Triton."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from bench.agreement import assert_within, forward_backward, pair
from bench.baselines import STAdapter
from bench.harness import Contender, median_ratio, time_interleaved
from fe_adapter import FusedFEAdapter
from fe_adapter.environment import machine
from fe_adapter.kernels.support import unsupported_reasons

DESIGNS = ("gemm", "fused")
FORMS: dict[str, dict[str, Any]] = {
    "static": {"dilation": 1},
    "dilated": {"dilation": 3, "kernel_size": 5, "activation": "silu"},
    "dynamic": {"dilation": "dynamic", "activation": "gelu"},
    "bounded": {"dilation": "dynamic", "max_dilation": 1.5, "recompute": "hidden"},
}
SHAPES = ((2, 8, 196, 1, 768, 64), (2, 5, 37, 5, 200, 96), (1, 16, 49, 0, 384, 384), (3, 1, 7, 1, 33, 17))


def run(seconds: float) -> dict[str, Any]:
    """Check every design, dtype, form and shape; then, if all are right, time the layer until ``seconds`` have passed.

    Returns:
        Results, ready for JSON: ``failures`` by case, and ``rows`` of times, empty where there are failures.
    """
    start = time.monotonic()
    device = torch.device("cuda")
    dtypes = [d for d in (torch.bfloat16, torch.float16, torch.float32) if not unsupported_reasons(device, d)]
    failures = {}
    for design, dtype, form, shape in itertools.product(DESIGNS, dtypes, FORMS, SHAPES):
        try:
            check(design, dtype, shape, FORMS[form], device)
        except Exception as error:  # one failure must not hide the others
            failures[f"{design} {dtype} {form} {shape}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    rows = []
    for dtype, R in itertools.product(dtypes[:1] if failures == {} else [], (64, 128, 384)):
        if time.monotonic() - start < seconds:
            rows.append(_measure(dtype, R, device))
    return {"case": "gpu", "machine": machine(), "failures": failures, "rows": rows}


def check(
    design: str, dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any], device: torch.device
) -> None:
    """Output and gradients of one layer against float64 on the same device; two runs give the same bits.

    Raises:
        AssertionError: they do not agree.
    """
    os.environ["FE_ADAPTER_DESIGN"] = design
    B, T, N, P, D, R = shape
    options = {**options, "num_frames": T, "num_prefix_tokens": P, "device": device}
    recompute = options.pop("recompute", None)
    exact, _ = pair(D, R, dtype=torch.float64, **options)
    layer = FusedFEAdapter(D, R, backend="triton", recompute=recompute, dtype=dtype, **options)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())
    x, dy = torch.randn(2, B * T, P + N, D, device=device).to(dtype)
    actual, again = forward_backward(layer, x, dy), forward_backward(layer, x, dy)
    assert all(torch.equal(value, again[name]) for name, value in actual.items()), "two runs differ"
    assert torch.equal(actual["y"][:, :P], x[:, :P]), "prefix tokens changed"
    assert_within(actual, forward_backward(exact, x.double(), dy.double()), dtype, length=B * T * N * 15)


def _measure(dtype: torch.dtype, R: int, device: torch.device, batch_size: int = 8, rounds: int = 50) -> dict[str, Any]:
    """One layer, forward and backward: both designs, the eager backend, and ST-Adapter's formulation."""
    T, N, D = 8, 196, 768
    layers: dict[str, nn.Module] = {"st-adapter": STAdapter(D, R, T).to(device, dtype)}
    for kind, dilation in (("static", 1), ("dynamic", "dynamic")):
        for backend in ("eager", *DESIGNS):
            name = "eager" if backend == "eager" else "triton"
            layer = FusedFEAdapter(D, R, num_frames=T, dilation=dilation, backend=name, device=device, dtype=dtype)
            nn.init.normal_(layer.temporal_conv.weight)
            layers[f"{kind} {backend}"] = layer
    leaf = torch.randn(batch_size * T, N + 1, D, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(leaf)

    def prepare(name: str) -> Tensor:
        os.environ["FE_ADAPTER_DESIGN"] = next((d for d in DESIGNS if d in name), "gemm")
        layers[name].zero_grad(set_to_none=True)
        leaf.grad = None
        return leaf.clone()

    contenders = {
        name: Contender(lambda name=name: prepare(name), lambda x, layer=layer: layer(x).backward(dy))
        for name, layer in layers.items()
    }
    seconds = time_interleaved(contenders, rounds, f"R={R}")
    return {
        "R": R,
        "shape": {"B": batch_size, "T": T, "N": N, "P": 1, "D": D, "dtype": str(dtype)},
        "median_ms": {name: 1e3 * torch.tensor(times).median().item() for name, times in seconds.items()},
        "speedup_over_st_adapter": {
            name: median_ratio(seconds, "st-adapter", name) for name in layers if name != "st-adapter"
        },
    }
