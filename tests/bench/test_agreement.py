"""The yardstick of all numerical checks itself: it refuses planted faults, and passes what is right."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from bench.proof.agreement import Expected, assert_within, expect, forward_backward, pair, share_weights
from bench.proof.checks import SHAPES
from fe_adapter import FusedFEAdapter

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SMALL = [(2, 4, 5, 1, 24, 20), (2, 5, 7, 5, 33, 17)]
*LARGE, TINY = SHAPES.values()
ALL_SHAPES = [*SMALL, *(pytest.param(shape, marks=pytest.mark.slow) for shape in LARGE), TINY]


def without_one(z: Tensor, dim: int) -> Tensor:
    """``z`` with one row (dim 0) or channel (dim 1) of zeros, that of median norm."""
    rows = z.flatten(0, -2)
    norms = rows.double().norm(dim=1 - dim)
    return rows.index_fill(dim, norms.argsort()[len(norms) // 2], 0).view(z.shape)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "negated": torch.neg,
    "too large": lambda z: z.double() * {torch.float32: 1.0005, torch.float16: 1.002}.get(z.dtype, 1.01),
    "rows rolled": lambda z: z.roll(1, -2),
    "a row of zeros": lambda z: without_one(z, 0),
    "a channel of zeros": lambda z: without_one(z, 1),
    "a NaN": lambda z: torch.where(torch.arange(z.numel()).view(z.shape) == 1, torch.nan, z),
}


@functools.cache
def results(shape: tuple[int, ...], dtype: torch.dtype, dilation: int | str) -> tuple[dict, dict[str, Expected]]:
    """What the eager backend gives in ``dtype``, and what is expected."""
    B, T, N, P, D, R = shape
    options = {"num_frames": T, "num_prefix_tokens": P, "dilation": dilation, "activation": "silu"}
    exact, _ = pair(D, R, dtype=torch.float64, **options)
    layer = FusedFEAdapter(D, R, backend="eager", dtype=dtype, **options)
    share_weights(exact, layer)
    x, dy = torch.randn(2, B * T, P + N, D).to(dtype)
    return forward_backward(layer, x, dy), expect(exact, x, dy, dtype)


def refused(actual: dict[str, Tensor], expected: dict[str, Expected]) -> bool:
    try:
        assert_within(actual, expected)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dilation", [1, "dynamic"])
def test_the_eager_backend_passes(shape, dtype, dilation):
    assert_within(*results(shape, dtype, dilation))


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fault_in_any_tensor_is_refused(shape, dtype):
    actual, expected = results(shape, dtype, 1)
    for (fault, plant), name in itertools.product(FAULTS.items(), ("y", "x", "down_proj.weight", "up_proj.weight")):
        assert refused({**actual, name: plant(actual[name])}, expected), f"{fault} in {name} passes"


@pytest.mark.parametrize("name", ["down_proj.bias", "temporal_conv.bias", "up_proj.bias", "dilation_proj.bias"])
def test_a_missing_or_negated_bias_gradient_is_refused(name):
    for shape, dtype in itertools.product(SMALL, DTYPES):
        actual, expected = results(shape, dtype, "dynamic")
        for fault in (torch.zeros_like(actual[name]), -actual[name]):
            assert refused({**actual, name: fault}, expected)


def test_equal_tokens_widen_sums_alone():
    exact, _ = pair(24, 12, num_frames=2, dilation=1, dtype=torch.float64)
    layer = FusedFEAdapter(24, 12, num_frames=2, dilation=1, backend="eager", dtype=torch.bfloat16)
    share_weights(exact, layer)
    x, dy = (z[:, :1].expand(2, 197, 24) for z in torch.randn(2, 2, 1, 24).bfloat16())
    actual, expected = forward_backward(layer, x, dy), expect(exact, x, dy, torch.bfloat16)
    assert_within(actual, expected, copies=197)
    actual["y"][0, 5] *= 1.2
    with pytest.raises(AssertionError, match=r"y: .* times the allowed error"):
        assert_within(actual, expected, copies=197)
