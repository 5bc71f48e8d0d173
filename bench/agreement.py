"""Adapters with random weights, and how far two ways of computing one may differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fe_adapter import FEAdapter, FusedFEAdapter


def pair(embed_dim: int, bottleneck: int, *, seed: int = 0, **options) -> tuple[FEAdapter, FusedFEAdapter]:
    """The reference and the fused layer with the same random weights, none of them zero."""
    torch.manual_seed(seed)
    reference, fused = FEAdapter(embed_dim, bottleneck, **options), FusedFEAdapter(embed_dim, bottleneck, **options)
    for parameter in reference.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=fan_in**-0.5)
    fused.load_state_dict(reference.state_dict())
    return reference, fused


def forward_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output and every gradient of ``layer`` at ``x``, by name."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_within(
    actual: dict[str, Tensor],
    exact: dict[str, Tensor],
    dtype: torch.dtype,
    length: int,
    eager: dict[str, Tensor] | None = None,
) -> None:
    """Each tensor within the rounding error of sums of ``length`` products in ``dtype``.

    Rounding errors add up like a random walk: about ``eps·sqrt(length)`` of the typical size of a result; the factor 8
    covers the largest of some thousand results and the four products in a row that an adapter is.

    ``eager`` are the results of another way in the same dtype, twice whose error is allowed on top: a single sum may be
    far smaller than its terms, and where a dynamic dilation reads a whole frame, slopes jump, and rounding what it is
    predicted from decides on which side it is.
    """
    for name, expected in exact.items():
        scale = expected.double().square().mean().sqrt() + expected.double().abs() / 8
        error = (actual[name].double() - expected.double()).abs()
        allowed = 8 * torch.finfo(dtype).eps * math.sqrt(length) * scale + torch.finfo(dtype).tiny
        if eager is not None:
            allowed += 2 * (eager[name].double() - expected.double()).abs()
        assert bool((error <= allowed).all()), f"{name}: {(error / allowed).max():.1f} times the allowed error"
