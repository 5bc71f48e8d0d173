"""The reference itself: held to `nn.Conv3d`, to numbers worked out by hand, and to finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.proof.agreement import pair
from fe_adapter import FEAdapter, FusedFEAdapter


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("kernel_size", [(1, 1, 1), (3, 1, 1), (5, 3, 1), (3, 3, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_static_convolution_is_conv3d(cls, kernel_size, dilation):
    T, H, W, D, R = 5, 4, 3, 6, 4
    layer = pair(D, R, num_frames=T, kernel_size=kernel_size, dilation=dilation, grid_size=(H, W), dtype=torch.float64)[
        cls is FusedFEAdapter
    ]
    K, kh, kw = kernel_size
    conv = nn.Conv3d(
        R, R, kernel_size, padding=(K // 2 * dilation, kh // 2, kw // 2), dilation=(dilation, 1, 1), groups=R
    ).double()
    conv.load_state_dict(layer.temporal_conv.state_dict())
    x = torch.randn(2, T, 1 + H * W, D, dtype=torch.float64)
    u = layer.down_proj(x[:, :, 1:]).view(2, T, H, W, R)
    c = conv(u.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    expected = x[:, :, 1:] + layer.up_proj(c.reshape(2, T, H * W, R))
    torch.testing.assert_close(layer(x)[:, :, 1:], expected)


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 5), (5, 3, 1), (3, 1, 3)])
@pytest.mark.parametrize("dilation", [(2, 1, 1), (1, 2, 1), (2, 1, 3), (3, 2, 2), (9, 8, 7)], ids=str)
@pytest.mark.parametrize(("T", "grid"), [(5, (4, 3)), (1, (2, 7)), (3, (1, 1))], ids=str)
def test_dilation_on_the_patch_grid_is_conv3d(cls, kernel_size, dilation, T, grid):
    """Output and gradients; the last dilation reaches beyond every axis."""
    D, R = 6, 4
    layer = pair(D, R, num_frames=T, kernel_size=kernel_size, dilation=dilation, grid_size=grid, dtype=torch.float64)[
        cls is FusedFEAdapter
    ]
    padding = tuple(size // 2 * distance for size, distance in zip(kernel_size, dilation, strict=True))
    conv = nn.Conv3d(R, R, kernel_size, padding=padding, dilation=dilation, groups=R).double()
    conv.load_state_dict(layer.temporal_conv.state_dict())
    x, dy = torch.randn(2, 2, T, 1 + grid[0] * grid[1], D, dtype=torch.float64)
    x.requires_grad_()
    u = layer.down_proj(x[:, :, 1:]).unflatten(2, grid)
    c = conv(u.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    expected = x[:, :, 1:] + layer.up_proj(c.flatten(2, 3))
    y = layer(x)
    torch.testing.assert_close(y[:, :, 1:], expected)
    others = (x, *layer.down_proj.parameters())
    actual = torch.autograd.grad(y[:, :, 1:], (*others, *layer.temporal_conv.parameters()), dy[:, :, 1:])
    by_conv3d = torch.autograd.grad(expected, (*others, *conv.parameters()), dy[:, :, 1:])
    torch.testing.assert_close(actual, by_conv3d)


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_dynamic_dilation_by_hand(cls):
    """FE-Adapter's dilation on one channel: T=4, taps (1, 10, 100), every dilation 1.5 frames.

    The projections are identities (D = R = 1), so ``y − x`` is the convolution and its input is ``x``.
    """
    layer = cls(1, 1, num_frames=4, num_prefix_tokens=0, dtype=torch.float64)
    with torch.no_grad():
        layer.down_proj.weight.fill_(1)
        layer.up_proj.weight.fill_(1)
        layer.temporal_conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1, 1))
        layer.dilation_proj.bias.fill_(0.5)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(4, 1, 1).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert (y - x).flatten().tolist() == [260, 370.5, 231.5, 42.5]
    assert (x.grad - 1).flatten().tolist() == [11, 61, 110.5, 110]
    assert layer.temporal_conv.weight.grad.flatten().tolist() == [4.5, 10, 8]
    assert layer.temporal_conv.bias.grad.tolist() == [4]
    assert layer.dilation_proj.weight.grad[1].tolist() == [-909]
    assert layer.dilation_proj.bias.grad.tolist() == [-203]


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize(("dilation", "max_dilation"), [(2, None), ("dynamic", None), ("dynamic", 0.75)])
def test_gradients_agree_with_finite_differences(cls, dilation, max_dilation):
    options = {"num_frames": 4, "dilation": dilation, "max_dilation": max_dilation, "activation": "silu"}
    layer = pair(5, 3, **options, dtype=torch.float64, seed=3)[cls is FusedFEAdapter]
    x = torch.randn(4, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def call(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *weights))


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize(("bias", "expected"), [(50.0, 51.0), (-40.0, 0.0)])
def test_extreme_dilations(cls, bias, expected):
    """Far taps read zeros; a vanishing dilation reads the frame itself."""
    layer = pair(1, 1, num_frames=4, num_prefix_tokens=0, dtype=torch.float64)[cls is FusedFEAdapter]
    with torch.no_grad():
        layer.dilation_proj.weight.zero_()
        layer.dilation_proj.bias.fill_(bias)
    x = torch.randn(4, 1, 1, dtype=torch.float64)
    w = layer.temporal_conv.weight.flatten()
    taps = w[1] if expected > 4 else w.sum()
    c = layer.temporal_conv.bias + taps * layer.down_proj(x)
    torch.testing.assert_close(layer(x), x + layer.up_proj(c))


def test_max_dilation_bounds_the_dilation_and_stops_its_gradient():
    for cls in (FEAdapter, FusedFEAdapter):
        layer = pair(4, 3, num_frames=6, max_dilation=2.0, dtype=torch.float64)[cls is FusedFEAdapter]
        free = cls(4, 3, num_frames=6, dtype=torch.float64)
        with torch.no_grad():
            layer.dilation_proj.weight.zero_()
            layer.dilation_proj.bias.fill_(3.0)
            free.load_state_dict(layer.state_dict())
            free.dilation_proj.bias.fill_(1.0)
        x = torch.randn(6, 5, 4, dtype=torch.float64)
        y = layer(x)
        torch.testing.assert_close(y, free(x))
        y.sum().backward()
        assert layer.dilation_proj.bias.grad.item() == 0


def test_at_the_bound_the_gradient_of_the_dilation_passes():
    """As a fresh layer with max_dilation=1 is."""
    x, gradients = torch.randn(6, 5, 4, dtype=torch.float64), []
    for layer in pair(4, 3, num_frames=6, max_dilation=1.0, dtype=torch.float64):
        with torch.no_grad():
            layer.dilation_proj.weight.zero_()
            layer.dilation_proj.bias.zero_()
        layer(x).square().sum().backward()
        gradients.append(layer.dilation_proj.bias.grad)
    assert gradients[0] != 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_a_dilation_that_is_not_a_number_gives_not_a_number(cls):
    layer = pair(4, 3, num_frames=4, num_prefix_tokens=0)[cls is FusedFEAdapter]
    with torch.no_grad():
        layer.dilation_proj.bias.fill_(float("nan"))
    assert layer(torch.randn(4, 2, 4)).isnan().all()


def test_the_reference_has_second_derivatives():
    layer = pair(3, 2, num_frames=3, activation="silu", dilation=1, dtype=torch.float64)[0]
    x = torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
