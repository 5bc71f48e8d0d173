"""The cases: rivals that compute what they should, and checks of a step that see faults."""

from __future__ import annotations

import os
import sys
import types
from unittest import mock

import pytest
import torch
from torch import nn

from bench.cases import get_cases, work
from bench.cases.rivals import RIVALS, STAdapter, shifted_adds
from bench.measure.case import Point, SkippedError, measure
from bench.measure.harness import Contender
from fe_adapter import FEAdapter, FusedFEAdapter
from tests.imitated import outcomes

CPU = torch.device("cpu")
ADAPTER = FEAdapter(8, 4, num_frames=2, dilation=1)


def test_a_step_is_checked_at_its_own_number_of_frames(monkeypatch):
    """As would happen if a kernel for longer clips were wrong."""
    real = FusedFEAdapter.forward
    monkeypatch.setattr(FusedFEAdapter, "forward", lambda self, x: real(self, x) * (1 + 0.01 * (self.num_frames > 3)))
    for name in ("step", "ladder"):
        case = get_cases()[name]
        (point,) = case.points(CPU, quick=True)
        record = measure(name, case, point, CPU)
        assert record["providers"] == {}
        assert record["failures"]


def test_a_design_can_be_forced_for_one_provider_alone(monkeypatch):
    monkeypatch.delenv("FE_ADAPTER_BACKEND", raising=False)
    seen = []
    layer = get_cases()["layer"]
    contender = Contender(lambda _: seen.append(os.environ.get("FE_ADAPTER_BACKEND")))
    of_work = mock.Mock(**{"contender.return_value": contender, "graphed_contender.return_value": contender})
    graphed = layer.graphed_design(of_work, torch.nn.Identity(), torch.nn.Identity(), "eager")
    graphed.step(graphed.prepare())
    assert seen == ["eager", None]

    def refuse(_: object) -> None:
        raise RuntimeError("FE_ADAPTER_DESIGN=fused cannot run here")

    of_work.contender.return_value = Contender(refuse)
    with pytest.raises(SkippedError, match="cannot run here"):
        layer.graphed_design(of_work, torch.nn.Identity(), torch.nn.Identity(), "fused")


def test_what_a_graph_replays_is_checked(monkeypatch):
    """A stand-in for a graph, which runs the step once; what it left is what is checked."""

    class Once:
        def __init__(self, step):
            step()

        def __call__(self, _):
            pass

    monkeypatch.setattr(work, "Graphed", Once)
    point = Point({"pass": "both", "B": 1, "T": 2, "N": 4, "D": 8, "R": 4, "dtype": "float32"}, rounds=1)
    at_work, (static, fused), _ = work.at_work(point, CPU, "both")
    contender = at_work.graphed_contender(fused, static)
    contender.check()
    assert contender.memory()["peak"] > 0
    real = FusedFEAdapter.forward
    monkeypatch.setattr(FusedFEAdapter, "forward", lambda self, x: real(self, x) * 1.01)
    with pytest.raises(AssertionError):
        at_work.graphed_contender(fused, static).check()


def test_graphs_are_captured_on_a_device_that_is_not_there():
    assert {name: why for name, why in outcomes("tests.bench.graph_cases").items() if why} == {}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_baselines_compute_a_static_adapter(channels_last):
    torch.manual_seed(0)
    adapter = FEAdapter(24, 8, num_frames=3, dilation=1)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 17, 24)
    st_adapter = STAdapter(adapter, channels_last)
    torch.testing.assert_close(st_adapter(x.clone()), adapter(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(shifted_adds(adapter)(x), adapter(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("library", ["causal_conv1d", "fla"])
def test_causal_convolutions_become_centred_ones(library, monkeypatch):
    """Stand-ins with those libraries' documented signatures: the layouts and the shift are ours to get right."""

    def causal_conv1d_fn(x, weight, bias=None):  # (batch, dim, length)
        K = weight.shape[1]
        return nn.functional.conv1d(nn.functional.pad(x, (K - 1, 0)), weight[:, None], bias, groups=len(weight))

    def fla_causal_conv1d(x, weight=None, bias=None):  # (batch, length, dim)
        return causal_conv1d_fn(x.transpose(1, 2), weight, bias).transpose(1, 2), None

    monkeypatch.setitem(sys.modules, "causal_conv1d", types.SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn))
    stand_in = types.SimpleNamespace(causal_conv1d=fla_causal_conv1d)
    monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.modules", types.ModuleType("fla.modules"))
    monkeypatch.setitem(sys.modules, "fla.modules.convolution", stand_in)
    torch.manual_seed(0)
    u, weight, bias = torch.randn(2, 5, 4, 6), torch.randn(6, 3), torch.randn(6)
    ours, theirs = (RIVALS[name](ADAPTER).convolution for name in ("shifted adds", library.replace("_", "-")))
    torch.testing.assert_close(theirs(u, weight, bias), ours(u, weight, bias))


def test_the_step_refuses_wrong_gradients():
    step = get_cases()["step"]
    (point,) = step.points(CPU, quick=True)
    net = step.Net(point, CPU)
    model = net.adapted(1)
    net.checked_contender(model, 1).check()
    model.vit.blocks[0].fe_adapter.up_proj.weight.register_hook(lambda gradient: 1.01 * gradient)
    with pytest.raises(AssertionError, match=r"gradients: .* times the error of plain adapters"):
        net.checked_contender(model, 1).check()
