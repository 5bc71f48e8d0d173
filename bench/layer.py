"""One adapter layer, forward and backward: ours against ST-Adapter's formulation and the floor of its products."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines import SixProducts, STAdapter
from bench.harness import Contender, median_ratio, time_interleaved
from fe_adapter import FusedFEAdapter
from fe_adapter.environment import machine
from fe_adapter.memory import measure_peak_memory, measure_saved_memory

EMBED_DIM, NUM_FRAMES, NUM_PATCHES = 768, 8, 196


def run(bottlenecks: tuple[int, ...], batch_size: int, rounds: int) -> dict[str, Any]:
    """Time every bottleneck width; fp32, D=768, T=8, N=196, one prefix token. Results, ready for JSON."""
    shape = {"B": batch_size, "T": NUM_FRAMES, "N": NUM_PATCHES, "P": 1, "D": EMBED_DIM, "dtype": "float32"}
    rows = [_measure(R, batch_size, rounds) for R in bottlenecks]
    return {"case": "layer", "machine": machine(), "shape": shape, "rounds": rounds, "rows": rows}


def _measure(R: int, batch_size: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    static = _adapter(R, 1)
    layers: dict[str, nn.Module] = {
        "st-adapter": STAdapter(EMBED_DIM, R, NUM_FRAMES).load(static),
        "static": static,
        "dynamic": _adapter(R, "dynamic"),
    }
    leaf = torch.randn(batch_size * NUM_FRAMES, NUM_PATCHES + 1, EMBED_DIM, requires_grad=True)
    dy = torch.randn_like(leaf)
    _check_agreement(layers["st-adapter"], static, leaf, dy)

    def prepare(layer: nn.Module) -> Tensor:
        layer.zero_grad(set_to_none=True)
        leaf.grad = None
        return leaf.clone()  # as in a network: the input is no leaf, and ST-Adapter may overwrite it

    contenders = {
        name: Contender(lambda layer=layer: prepare(layer), lambda x, layer=layer: layer(x).backward(dy))
        for name, layer in layers.items()
    }
    products = SixProducts(batch_size * NUM_FRAMES * NUM_PATCHES, EMBED_DIM, R)
    contenders["six products"] = Contender(lambda: None, products)
    seconds = time_interleaved(contenders, rounds, f"R={R}")
    return {
        "R": R,
        "median_ms": {name: 1e3 * torch.tensor(times).median().item() for name, times in seconds.items()},
        "static_speedup_over_st_adapter": median_ratio(seconds, "st-adapter", "static"),
        "static_over_six_products": median_ratio(seconds, "static", "six products"),
        "dynamic_over_six_products": median_ratio(seconds, "dynamic", "six products"),
        "dynamic_speedup_over_st_adapter": median_ratio(seconds, "st-adapter", "dynamic"),
        "saved_bytes": {name: measure_saved_memory(layer, prepare(layer)) for name, layer in layers.items()},
        "peak_bytes": {
            name: measure_peak_memory(partial(contenders[name].step, prepare(layer))) for name, layer in layers.items()
        },
    }


def _adapter(R: int, dilation: int | str) -> FusedFEAdapter:
    layer = FusedFEAdapter(EMBED_DIM, R, num_frames=NUM_FRAMES, dilation=dilation)
    for parameter in (layer.temporal_conv.weight, layer.temporal_conv.bias):
        nn.init.normal_(parameter)
    if layer.dilation_proj is not None:
        nn.init.normal_(layer.dilation_proj.weight, std=R**-0.5)
    return layer


def _check_agreement(theirs: nn.Module, ours: nn.Module, leaf: Tensor, dy: Tensor) -> None:
    """Speed counts only for the same result: outputs and input gradients in fp32, D products a sum."""
    tolerance = 32 * EMBED_DIM**0.5 * torch.finfo(torch.float32).eps
    expected, actual = theirs(leaf.clone()), ours(leaf)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(y, leaf, dy)[0] for y in (expected, actual)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=tolerance)
