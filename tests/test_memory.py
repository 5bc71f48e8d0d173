"""Memory: figures worked out by hand, and estimates against measurements of the same step."""

from __future__ import annotations

import torch
from torch import nn

from fe_adapter import FusedFEAdapter, estimate_memory
from fe_adapter.memory import measure_peak_memory, measure_saved_memory


def test_a_linear_layer_by_hand():
    layer = nn.Linear(128, 64, bias=False)
    weight, x, y = 4 * 128 * 64, 4 * 32 * 128, 4 * 32 * 64
    assert measure_saved_memory(layer, torch.randn(32, 128)) == x
    estimate = estimate_memory(layer, 32, 128)
    assert estimate.resident == weight + x
    assert estimate.saved == x
    assert estimate.peak >= weight + x + y + 3 * weight  # the gradient and AdamW's two moments


def test_peak_is_what_is_alive_at_once():
    x = torch.randn(100, 100)
    assert measure_peak_memory(lambda: x + x) == x.nbytes
    assert measure_peak_memory(lambda: ((x + x) + x) + x) == 2 * x.nbytes


def test_estimate_agrees_with_the_measured_peak():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), FusedFEAdapter(256, 32, num_frames=4), nn.Linear(256, 64))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    estimate = estimate_memory(model, 64, 20, 64)
    x = torch.randn(64, 20, 64)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert estimate.saved == measure_saved_memory(model, x)
    step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    measured = estimate.resident + state + measure_peak_memory(step)
    assert abs(estimate.peak / measured - 1) < 0.1  # the adapter's own temporaries are not seen


def test_a_frozen_model_has_nothing_to_save():
    assert estimate_memory(nn.Linear(8, 8).requires_grad_(False), 4, 8).saved == 0
