"""Is every kernel right on this GPU? Needs a checkout, torch and Triton."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import torch

from bench.agreement import assert_within, forward_backward, pair
from fe_adapter import FusedFEAdapter
from fe_adapter.kernels.plans import DESIGNS, refusals
from fe_adapter.kernels.support import unsupported_reasons

FORMS: dict[str, dict[str, Any]] = {
    "static": {"dilation": 1},
    "dilated": {"dilation": 3, "kernel_size": 5, "activation": "silu"},
    "dynamic": {"dilation": "dynamic", "activation": "gelu"},
    "bounded": {"dilation": "dynamic", "max_dilation": 1.5, "recompute": "hidden"},
    "input": {"dilation": 1, "recompute": "input"},
    "stream": {"dilation": 2, "fp32_stream": True},  # x in fp32 under autocast
    "spatial": {"dilation": 1, "kernel_size": (3, 3, 3), "activation": "gelu"},
}
SHAPES = (  # (B, T, N, P, D, R)
    (2, 8, 196, 1, 768, 64),
    (2, 5, 37, 5, 200, 96),
    (1, 16, 49, 0, 384, 384),
    (1, 12, 50, 1, 768, 512),
    (3, 1, 7, 1, 33, 17),
)


def failures() -> dict[str, str]:
    """Check every design, dtype, form and shape; what went wrong, by case."""
    device = torch.device("cuda")
    dtypes = [d for d in (torch.bfloat16, torch.float16, torch.float32) if not unsupported_reasons(device, d)]
    found = {}
    for dtype, shape, form in itertools.product(dtypes, SHAPES, FORMS):
        if form == "stream" and dtype == torch.float32:
            continue
        for design in served(dtype, shape, FORMS[form], device):
            try:
                check(design, dtype, shape, FORMS[form], device)
            except Exception as error:  # one failure must not hide the others
                found[f"{design} {dtype} {form} {shape}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def served(dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any], device: torch.device) -> list[str]:
    """The designs that can serve a shape and a form on this device."""
    _, T, N, P, D, R = shape
    kernel = options.get("kernel_size", 3)
    if isinstance(kernel, tuple) and math.isqrt(N) ** 2 != N:
        return []  # no square of patches
    x = torch.empty(1, T, P + N, D, device=device, dtype=torch.float32 if options.get("fp32_stream") else dtype)
    taps = torch.empty(R, 1, *(kernel if isinstance(kernel, tuple) else (kernel, 1, 1)))
    return [design for design in DESIGNS if not refusals(design, x, dtype, R, taps)]


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
    recompute, fp32_stream = options.pop("recompute", None), options.pop("fp32_stream", False)
    stored = torch.float32 if fp32_stream else dtype
    exact, _ = pair(D, R, dtype=torch.float64, **options)
    layer = FusedFEAdapter(D, R, backend="triton", recompute=recompute, dtype=stored, **options)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())
    x, dy = torch.randn(2, B * T, P + N, D, device=device).to(stored)
    with torch.autocast(device.type, dtype, enabled=fp32_stream):
        actual, again = forward_backward(layer, x, dy), forward_backward(layer, x, dy)
    assert all(torch.equal(value, again[name]) for name, value in actual.items()), "two runs differ"
    assert torch.equal(actual["y"][:, :P], x[:, :P]), "prefix tokens changed"
    assert_within(actual, forward_backward(exact, x.double(), dy.double()), dtype, length=B * T * N * 15)
