"""Causal adapters: held to `nn.Conv3d` and to numbers worked out by hand, and blind to what comes later."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.proof.agreement import forward_backward, pair
from fe_adapter import FEAdapter, FEAdapterConfig, FusedFEAdapter

CLASSES = pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
FORMS = {
    "static": {"dilation": 1},
    "dilated": {"dilation": 2, "kernel_size": 5, "activation": "gelu"},
    "beyond the clip": {"dilation": 9},
    "dynamic": {"dilation": "dynamic", "activation": "silu"},
    "bounded": {"dilation": "dynamic", "max_dilation": 1.4, "kernel_size": 5},
    "spatial": {"dilation": (2, 1, 2), "kernel_size": (3, 3, 3), "grid_size": (3, 2)},
    "spatial, dynamic": {"dilation": "dynamic", "kernel_size": (3, 1, 3), "grid_size": (3, 2), "activation": "relu"},
}


@CLASSES
@pytest.mark.parametrize("kernel_size", [(1, 1, 1), (3, 1, 1), (5, 3, 1), (3, 3, 5)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_static_convolution_is_conv3d_padded_in_front(cls, kernel_size, dilation):
    T, H, W, D, R = 5, 4, 3, 6, 4
    options = {"kernel_size": kernel_size, "dilation": dilation, "causal": True, "grid_size": (H, W)}
    layer = pair(D, R, num_frames=T, dtype=torch.float64, **options)[cls is FusedFEAdapter]
    K, kh, kw = kernel_size
    conv = nn.Conv3d(R, R, kernel_size, padding=(0, kh // 2, kw // 2), dilation=(dilation, 1, 1), groups=R).double()
    conv.load_state_dict(layer.temporal_conv.state_dict())
    x, dy = torch.randn(2, 2, T, 1 + H * W, D, dtype=torch.float64)
    x.requires_grad_()
    u = layer.down_proj(x[:, :, 1:]).unflatten(2, (H, W)).permute(0, 4, 1, 2, 3)
    c = conv(F.pad(u, (0, 0, 0, 0, (K - 1) * dilation, 0))).permute(0, 2, 3, 4, 1)
    expected = x[:, :, 1:] + layer.up_proj(c.flatten(2, 3))
    y = layer(x)
    torch.testing.assert_close(y[:, :, 1:], expected)
    others = (x, *layer.down_proj.parameters())
    actual = torch.autograd.grad(y[:, :, 1:], (*others, *layer.temporal_conv.parameters()), dy[:, :, 1:])
    by_conv3d = torch.autograd.grad(expected, (*others, *conv.parameters()), dy[:, :, 1:])
    torch.testing.assert_close(actual, by_conv3d)


@CLASSES
def test_dynamic_dilation_by_hand(cls):
    """One channel, T=4, taps (1, 10, 100) of which the last reads the present frame.

    The dilation is 1 + b + x[t − 2] / 10, so 1.5, 1.5, 1.6, 1.7 frames.
    """
    layer = cls(1, 1, num_frames=4, num_prefix_tokens=0, causal=True, dtype=torch.float64)
    with torch.no_grad():
        layer.down_proj.weight.fill_(1)
        layer.up_proj.weight.fill_(1)
        layer.temporal_conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1, 1))
        layer.dilation_proj.weight[0] = 0.1
        layer.dilation_proj.bias.fill_(0.5)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(4, 1, 1)
    c = (layer(x) - x).flatten()
    # x at t − d: −1.5 → 0; −0.5 → 0.5; 0.4 → 1.4; 1.3 → 2.3.  At t − 2d: 0; 0; −1.2 → 0; −0.4 → 0.6
    expected = torch.tensor([100.0, 200 + 5, 300 + 14, 400 + 23 + 0.6], dtype=torch.float64)
    torch.testing.assert_close(c, expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_backends_agree(form):
    options = {"num_frames": 6, "causal": True, "dtype": torch.float64, **FORMS[form]}
    reference, fused = pair(5, 4, **options)
    x, dy = torch.randn(2, 2 * 6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(forward_backward(fused, x, dy), forward_backward(reference, x, dy))


@CLASSES
@pytest.mark.parametrize("form", FORMS)
def test_what_comes_later_changes_nothing(cls, form):
    options = {"num_frames": 6, "causal": True, "dtype": torch.float64, **FORMS[form]}
    layer = pair(5, 4, **options)[cls is FusedFEAdapter]
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    y = layer(x)
    for t in range(1, 6):
        other = torch.cat([x[:, :t], torch.randn_like(x[:, t:])], 1)
        torch.testing.assert_close(layer(other)[:, :t], y[:, :t])
        assert not torch.allclose(layer(other)[:, t:], y[:, t:])


@CLASSES
def test_a_fresh_dynamic_adapter_is_a_static_one(cls):
    dynamic = pair(5, 4, num_frames=6, causal=True)[cls is FusedFEAdapter]
    static = cls(5, 4, num_frames=6, dilation=1, causal=True)
    nn.init.zeros_(dynamic.dilation_proj.weight)
    nn.init.zeros_(dynamic.dilation_proj.bias)
    static.load_state_dict({name: p for name, p in dynamic.state_dict().items() if "dilation" not in name})
    x = torch.randn(12, 7, 5)
    torch.testing.assert_close(dynamic(x), static(x))


@CLASSES
def test_the_flag_is_seen_and_checked(cls):
    assert "causal=True" in repr(cls(4, 2, num_frames=2, causal=True))
    assert "causal" not in repr(cls(4, 2, num_frames=2))
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match=r"causal=.* is neither True nor False"):
            cls(4, 2, num_frames=2, causal=wrong)
        with pytest.raises(TypeError, match=r"causal=.* is neither True nor False"):
            FEAdapterConfig(causal=wrong)
