"""One training step of a ViT under one memory policy after the other: what each saves, and what it costs.

Static adapters of the default width before every self-attention; policies a rung below the other. Measured peaks stand
beside those that `estimate_memory` predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases.step import Net
from bench.measure.case import Point, Provider
from bench.measure.harness import Contender
from fe_adapter import VideoClassifier, apply_memory_policy
from fe_adapter.memory.plan import FULL_TUNING, candidates, is_exact
from fe_adapter.models.adaptation import trainable_parameters

BASELINE = "none"
FEW = ("none", "selective", "gelu2bit+recompute_input")
TIMED = (FULL_TUNING, "none", "recompute_input", "gelu2bit+recompute_input", "selective", "recompute_input+full:0-8",
         "gelu2bit+recompute_input+full:0-8", "recompute_input+full")  # fmt: skip


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [_point("tiny", T=4, B=1, rounds=1, only=FEW)]
    if device.type == "cpu":
        return [
            _point("ViT-S/16", T=8, B=2, rounds=15, only=TIMED),
            _point("ViT-Ti/16", T=8, B=2, rounds=1),  # for the peaks alone
            _point("ViT-B/16", T=8, B=1, rounds=1, only=(*FEW, FULL_TUNING, "recompute_input+full")),
        ]
    return [_point(vit, T, B=8, rounds=15, precision="bf16") for vit, T in (("ViT-B/16", 8), ("ViT-L/16", 16))]


def _point(vit: str, T: int, B: int, rounds: int, precision: str = "no", only: tuple[str, ...] | None = None) -> Point:
    return Point({"vit": vit, "T": T, "B": B, "precision": precision}, rounds, warmup=1, only=only)


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    """Full fine-tuning, and every policy that `plan_memory` would try."""
    net = Net(point, device)
    found = {FULL_TUNING: Provider(lambda: net.contender(net.classifier(tune="full")))}
    for policy, precision in candidates(net.adapted(1), point["precision"]):
        own = Net(dataclasses.replace(point, parameters={**point.parameters, "precision": precision}), device)
        own.video, own.labels = net.video, net.labels
        found[policy] = Provider(partial(_contender, own, net, policy), "ours")
    return found


def _contender(net: Net, baseline: Net, policy: str) -> Contender:
    model = net.adapted(1)
    apply_memory_policy(model, policy)
    return net.contender(model, partial(_check, net, model, baseline, policy))


def _check(net: Net, model: VideoClassifier, baseline: Net, policy: str) -> None:
    """The gradients of plain adapters on one clip: up to rounding, or where a policy approximates at least alike."""
    actual, expected = _gradients(net, model), _gradients(baseline, baseline.plainly_adapted(1))
    if "bf16" in policy or not is_exact(policy):
        cosine = F.cosine_similarity(actual, expected, dim=0).item()
        assert cosine > 0.7, f"the gradient's cosine to the exact one is {cosine:.2f}"
        return
    error = ((actual - expected).norm() / expected.norm()).item()
    allowed = 1e-4 if baseline.precision == "no" else 0.05
    assert error <= allowed, f"the gradient is off by {error:.1e} of its norm"


def _gradients(net: Net, model: VideoClassifier) -> Tensor:
    with net.autocast():
        logits = model(net.video[:1])
    loss = F.cross_entropy(logits.float(), net.labels[:1])
    return torch.cat([g.flatten().float() for g in torch.autograd.grad(loss, trainable_parameters(model))])
