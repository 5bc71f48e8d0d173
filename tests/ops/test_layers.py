"""`FusedFEAdapter` against `FEAdapter` in float64, and what both promise."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from bench.proof.agreement import (
    PLAIN_SLACK,
    RECOMPUTED_SLACK,
    assert_within,
    expect,
    forward_backward,
    pair,
    share_weights,
)
from fe_adapter import FEAdapter, FusedFEAdapter
from fe_adapter.memory.measure import measure_saved_memory

KERNELS = [1, 3, 5, (3, 3, 3), (1, 3, 5)]
DILATIONS = [1, 2, 7, "dynamic"]


@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("dilation", DILATIONS)
@pytest.mark.parametrize("recompute", [None, "hidden", "input"])
def test_matches_the_reference_in_float64(kernel_size, dilation, recompute):
    for activation, (P, T) in itertools.product(["identity", "relu", "gelu", "silu"], [(0, 5), (5, 2), (1, 1)]):
        reference, fused = pair(
            7, 5, num_frames=T, kernel_size=kernel_size, dilation=dilation, activation=activation,
            num_prefix_tokens=P, grid_size=(3, 2), recompute=recompute, dtype=torch.float64,
        )  # fmt: skip
        x, dy = torch.randn(2, 2 * T, P + 6, 7, dtype=torch.float64)
        exact, actual = forward_backward(reference, x, dy), forward_backward(fused, x, dy)
        for name in exact:  # rounding is some 1e-15, a wrong term a good part of 1
            torch.testing.assert_close(
                actual[name], exact[name], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dilation", [2, "dynamic"])
@pytest.mark.parametrize("parameter_dtype", ["same", torch.float32])
def test_low_precision_is_within_rounding(dtype, dilation, parameter_dtype):
    T, N, D, R = 6, 12, 40, 24
    options = {"num_frames": T, "activation": "silu", "dilation": dilation}
    exact_layer, _ = pair(D, R, **options, dtype=torch.float64)
    layer = FusedFEAdapter(D, R, **options, dtype=dtype if parameter_dtype == "same" else parameter_dtype)
    share_weights(exact_layer, layer)
    x, dy = torch.randn(2, 3 * T, N + 1, D).to(dtype)
    actual = forward_backward(layer, x, dy)
    assert actual["y"].dtype == actual["x"].dtype == dtype
    assert all(p.grad.dtype == p.dtype for p in layer.parameters())
    assert_within(actual, expect(exact_layer, x, dy, dtype))


APART = [  # kernel, dilation, frames and grid: odd, in one row, beyond the clip and the grid, one frame
    ((3, 3, 3), (1, 2, 1), (5, 3, 4)),
    ((3, 3, 3), [2, 1, 3], (4, 2, 7)),
    ((1, 5, 3), (3, 2, 2), (2, 7, 5)),
    ((5, 1, 3), (2, 4, 2), (7, 1, 6)),
    ((3, 3, 5), (9, 8, 7), (3, 4, 2)),
    ((3, 3, 3), (2, 2, 2), (1, 5, 3)),
]


@pytest.mark.parametrize(("kernel_size", "dilation", "sizes"), APART, ids=str)
@pytest.mark.parametrize("recompute", [None, "hidden", "input"])
def test_taps_apart_on_the_grid_match_the_reference_in_float64(kernel_size, dilation, sizes, recompute):
    T, H, W = sizes
    for activation in ("identity", "silu"):
        reference, fused = pair(
            7, 5, num_frames=T, kernel_size=kernel_size, dilation=dilation, activation=activation, grid_size=(H, W),
            recompute=recompute, dtype=torch.float64,
        )  # fmt: skip
        x, dy = torch.randn(2, 2 * T, 1 + H * W, 7, dtype=torch.float64)
        exact, actual = forward_backward(reference, x, dy), forward_backward(fused, x, dy)
        for name in exact:
            torch.testing.assert_close(
                actual[name], exact[name], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel_size", "dilation", "sizes"), APART, ids=str)
def test_taps_apart_on_the_grid_are_within_rounding(kernel_size, dilation, sizes, dtype):
    T, H, W = sizes
    options = {"num_frames": T, "kernel_size": kernel_size, "dilation": dilation, "grid_size": (H, W)}
    exact_layer, _ = pair(40, 24, **options, activation="silu", dtype=torch.float64)
    layer = FusedFEAdapter(40, 24, **options, activation="silu", dtype=dtype)
    share_weights(exact_layer, layer)
    x, dy = torch.randn(2, 2 * T, 1 + H * W, 40).to(dtype)
    assert_within(forward_backward(layer, x, dy), expect(exact_layer, x, dy, dtype))


def test_a_dilation_beyond_an_axis_is_one_of_its_length():
    for layer in pair(7, 5, num_frames=3, kernel_size=(5, 3, 5), grid_size=(4, 2), dilation=(3, 4, 2)):
        x = torch.randn(3, 9, 7)
        expected = layer(x)
        for layer.dilation in ((3, 2**31 - 1, 2), (2**31 - 1, 4, 3), (7, 5, 9)):
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dilation", [1, "dynamic"])
def test_a_fresh_layer_is_the_identity(cls, dtype, dilation):
    torch.manual_seed(0)
    layer = cls(16, 6, num_frames=4, dilation=dilation, dtype=dtype)
    x = torch.randn(8, 10, 16, dtype=dtype)
    y = layer(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


def test_a_fresh_dynamic_adapter_equals_the_static_one_also_after_training_the_rest():
    static, _ = pair(12, 8, num_frames=6, dilation=1, dtype=torch.float64)
    dynamic = FusedFEAdapter(12, 8, num_frames=6, dtype=torch.float64)
    dynamic.load_state_dict(static.state_dict(), strict=False)
    x = torch.randn(6, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(dynamic(x), static(x))


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_every_parameter_learns_from_the_second_step(cls):
    torch.manual_seed(0)
    layer = cls(16, 8, num_frames=4, dtype=torch.float64)
    start = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, target = torch.randn(2, 8, 10, 16, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()
    assert [name for name, p in layer.state_dict().items() if torch.equal(p, start[name])] == []


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("num_prefix_tokens", [1, 5])
def test_prefix_tokens_pass_through_bit_identical(cls, num_prefix_tokens):
    layer = pair(16, 8, num_frames=4, num_prefix_tokens=num_prefix_tokens)[cls is FusedFEAdapter]
    x = torch.randn(8, num_prefix_tokens + 6, 16, requires_grad=True)
    dy = torch.randn_like(x)
    y = layer(x)
    y.backward(dy)
    assert torch.equal(y[:, :num_prefix_tokens], x[:, :num_prefix_tokens])
    assert torch.equal(x.grad[:, :num_prefix_tokens], dy[:, :num_prefix_tokens])
    assert not torch.equal(y[:, num_prefix_tokens:], x[:, num_prefix_tokens:])


def test_three_and_four_dimensional_inputs_give_the_same_bits():
    _, layer = pair(16, 8, num_frames=4)
    x = torch.randn(2, 4, 7, 16)
    assert torch.equal(layer(x), layer(x.flatten(0, 1)).view(x.shape))
    assert torch.equal(layer(x[:, :3]), layer(x[:, :3].flatten(0, 1), num_frames=3).view(2, 3, 7, 16))


def test_strided_and_sliced_inputs():
    reference, layer = pair(10, 6, num_frames=3, dilation="dynamic", activation="gelu", dtype=torch.float64)
    big = torch.randn(14, 9, 20, 6, dtype=torch.float64)
    inputs = {
        "sliced": big[4:10, 2:8, 5:15, 0],
        "every other channel": big[:6, :5, ::2, 1],
        "transposed": big[:9, :, :10, 2].transpose(0, 1),
        "one frame for all": big[:1, :6, :10, 3].expand(6, -1, -1),
    }
    for name, x in inputs.items():
        dy = torch.randn(20, *x.shape, dtype=torch.float64)[::20].expand(1, *x.shape)[0]
        expected = forward_backward(reference, x.clone(), dy.clone())
        for key, tensor in forward_backward(layer, x, dy).items():
            torch.testing.assert_close(tensor, expected[key], msg=lambda m, name=name, key=key: f"{name}, {key}: {m}")


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients():
    _, layer = pair(8, 4, num_frames=2)
    x = torch.randn(0, 5, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert all(not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("dilation", [1, "dynamic"])
def test_autocast_computes_in_bf16_and_keeps_the_residual_in_fp32(dilation):
    reference, layer = pair(24, 16, num_frames=4, dilation=dilation)
    x, dy = torch.randn(2, 8, 10, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = forward_backward(layer, x, dy)
        plain = forward_backward(reference, x, dy)
    assert all(tensor.dtype == torch.float32 for tensor in actual.values())
    assert torch.equal(actual["y"][:, 0], x[:, 0])
    expected = expect(reference, x, dy, torch.bfloat16)
    assert_within(actual, expected)
    assert_within(plain, expected, PLAIN_SLACK)
    assert not torch.equal(actual["y"], reference(x))


def test_float64_stays_float64_under_autocast():
    reference, layer = pair(6, 4, num_frames=2, dtype=torch.float64)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("dilation", [3, "dynamic"])
def test_the_same_bits_twice(dilation):
    _, layer = pair(32, 16, num_frames=5, dilation=dilation, kernel_size=(3, 3, 3))
    x, dy = torch.randn(2, 10, 17, 32)
    first, second = (forward_backward(layer, x, dy) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("trained", ["down_proj.weight", "temporal_conv.weight", "up_proj.bias", "dilation_proj.bias"])
def test_a_partly_frozen_layer_trains_the_rest(trained):
    reference, layer = pair(8, 4, num_frames=3, dtype=torch.float64)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    for module in (reference, layer):
        module.requires_grad_(False).get_parameter(trained).requires_grad_()
        module(x).square().sum().backward()
        assert [name for name, p in module.named_parameters() if p.grad is not None] == [trained]
    torch.testing.assert_close(layer.get_parameter(trained).grad, reference.get_parameter(trained).grad)


def test_state_dicts_interchange_and_have_the_documented_names():
    reference, fused = pair(8, 4, num_frames=2, kernel_size=(3, 1, 3))
    assert {name: tuple(p.shape) for name, p in fused.state_dict().items()} == {
        "down_proj.weight": (4, 8),
        "down_proj.bias": (4,),
        "temporal_conv.weight": (4, 1, 3, 1, 3),
        "temporal_conv.bias": (4,),
        "up_proj.weight": (8, 4),
        "up_proj.bias": (8,),
        "dilation_proj.weight": (3, 4),
        "dilation_proj.bias": (1,),
    }
    fresh = FEAdapter(8, 4, num_frames=2, kernel_size=(3, 1, 3))
    fresh.load_state_dict(fused.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(copied):
    _, layer = pair(8, 4, num_frames=2)
    x = torch.randn(2, 5, 8)
    y, twin = layer(x), copied(layer)
    assert torch.equal(twin(x), y)
    nn.init.zeros_(twin.up_proj.weight)
    assert torch.equal(layer(x), y)


def test_functional_call_uses_the_given_weights():
    _, layer = pair(8, 4, num_frames=2)
    _, other = pair(8, 4, num_frames=2, seed=1)
    x = torch.randn(2, 5, 8)
    weights = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    y = torch.func.functional_call(layer, weights, (x,))
    assert torch.equal(y, other(x))
    y.sum().backward()
    assert all(p.grad is not None for p in weights.values())
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(("recompute", "tensors"), [(None, "xh"), ("hidden", "x"), ("input", "yh")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dilation", [1, "dynamic"])
def test_saved_bytes_are_as_promised(recompute, tensors, dtype, dilation):
    B, T, N, D, R = 2, 4, 9, 32, 16
    _, layer = pair(D, R, num_frames=T, recompute=recompute, activation="gelu", dilation=dilation, dtype=dtype)
    x = torch.randn(B * T, 1 + N, D, dtype=dtype, requires_grad=True)
    sizes = {"x": x.nbytes, "y": x.nbytes, "h": B * T * N * R * dtype.itemsize}
    assert measure_saved_memory(layer, x) == sum(sizes[t] for t in tensors)


def test_nothing_is_saved_without_gradients():
    _, layer = pair(8, 4, num_frames=2)
    with torch.no_grad():
        assert layer(torch.randn(2, 5, 8)).grad_fn is None
    assert measure_saved_memory(layer.requires_grad_(False), torch.randn(2, 5, 8)) == 0


def test_recompute_input_is_exact_up_to_rounding():
    reference, layer = pair(16, 8, num_frames=4, recompute="input")
    x, dy = torch.randn(2, 8, 10, 16)
    assert_within(forward_backward(layer, x, dy), expect(reference, x, dy, torch.float32), RECOMPUTED_SLACK)


def test_compiles_without_graph_breaks():
    reference, layer = pair(16, 8, num_frames=4, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, dy = torch.randn(2, 8, 10, 16, dtype=torch.float64)
    expected = expect(reference, x, dy, torch.float64)
    leaf = x.requires_grad_()
    y = compiled(leaf)
    y.backward(dy)
    actual = {"y": y.detach(), "x": leaf.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    assert_within(actual, expected)


@pytest.mark.slow
def test_compiles_with_inductor():
    _, layer = pair(16, 8, num_frames=4)
    x = torch.randn(8, 10, 16)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_repr_says_what_it_is():
    assert "16, 8, num_frames=4, kernel_size=(3, 1, 1), dilation='dynamic'" in repr(FusedFEAdapter(16, num_frames=4))
