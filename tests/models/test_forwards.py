"""Blocks that run otherwise than their class says: copies, compiled blocks and models, forwards of their own."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, VideoClassifier, adapt, disable_adapters, unadapt
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.forwards import override_forward, restore_forward, restore_forwards
from tests.vits import BACKBONES, build

FRAMES, POSITIONS = 2, [("attn",), ("mlp",), ("attn", "mlp")]


def twice(module, own, x):
    return 2 * own(module, x)


def plus_one(module, own, x):
    return own(module, x) + 1


def adapted(vit, positions):
    adapt(vit, FEAdapterConfig(bottleneck=8, positions=positions), num_frames=FRAMES)
    generator = torch.Generator().manual_seed(0)
    for adapter in get_adapters(vit):
        for p in adapter.parameters():
            p.data.normal_(0, 0.1, generator=generator)
    return vit


def images():
    return torch.randn(2 * FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_overridden_again_and_restored_in_the_other_order():
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)
    expected = linear(x)
    override_forward(linear, twice)
    override_forward(linear, plus_one)
    assert torch.equal(linear(x), 2 * expected + 1)
    assert isinstance(linear, nn.Linear)
    assert repr(linear) == repr(nn.Linear(3, 3))
    restore_forward(linear, twice)  # not the last one: nothing happens
    assert torch.equal(linear(x), 2 * expected + 1)
    restore_forward(linear, plus_one)
    assert torch.equal(linear(x), 2 * expected)
    restore_forwards(linear)
    assert type(linear) is nn.Linear


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_overridden_and_independent(again):
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)
    override_forward(linear, twice)
    other = again(linear)
    assert torch.equal(other(x), linear(x))
    restore_forward(linear, twice)
    assert torch.equal(other(x), 2 * linear(x))


@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
@pytest.mark.parametrize("way", ["blocks in place", "the model", "the model in place"])
@torch.no_grad()
def test_what_was_compiled_before_runs_its_adapters(way, positions):
    """A graph from before is not used again: not after adapt, nor without adapters, nor after unadapt."""
    plain, expected = build("timm vit")(images()), adapted(build("timm vit"), positions)(images())
    vit = build("timm vit")
    run = torch.compile(vit, backend="eager") if way == "the model" else vit
    for module in vit.blocks if way == "blocks in place" else [vit] if way == "the model in place" else []:
        module.compile(backend="eager")
    torch.testing.assert_close(run(images()), plain)
    adapted(vit, positions)
    torch.testing.assert_close(run(images()), expected)
    with disable_adapters(vit):
        torch.testing.assert_close(run(images()), plain)
    torch.testing.assert_close(run(images()), expected)
    unadapt(vit)
    torch.testing.assert_close(run(images()), plain)


@torch.no_grad()
def test_one_graph_serves_all_adapted_blocks():
    vit = adapted(build("timm vit"), ("attn",))
    graphs: list[torch.fx.GraphModule] = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    for block in vit.blocks:
        block.compile(backend=count)
    vit(images())
    assert len(vit.blocks) > 1
    assert len(graphs) == 1


def test_a_forward_of_the_blocks_own_runs_within():
    """As accelerate's hooks leave one: the adapter comes before it, and it is back after unadapt."""
    vit = build("timm vit")
    expected, block = adapted(build("timm vit"), ("attn",))(images()), vit.blocks[0]
    calls = []
    block.forward = functools.partial(lambda own, *args: calls.append(1) or own(*args), block.forward)
    own = block.forward
    adapted(vit, ("attn",))
    assert torch.equal(vit(images()), expected)
    assert calls == [1]
    unadapt(vit)
    assert block.forward is own
    with pytest.raises(InputError, match="a forward of its own"):
        adapted(vit, ("mlp",))


@pytest.mark.parametrize("name", ["timm vit", "hf vit", "open_clip", "torchvision"])
def test_an_adapted_model_is_one_graph(name):
    """`torch.compile` finds nothing to break it at, in the models of every library."""
    matching = next(key for key in BACKBONES if key.startswith(name))
    model = VideoClassifier(build(matching), 3, config=FEAdapterConfig(bottleneck=4), num_frames=2).train()
    video = torch.zeros(1, 2, 3, *model.preprocessing.size)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(video), model(video))
