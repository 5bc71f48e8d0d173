"""One adapter layer, forward, backward and both: ours against other formulations and two floors."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from bench.cases.rivals import Formulation, SixProducts, STAdapter, causal_conv1d, fla_conv1d, shifted_adds
from bench.cases.work import Work, compiled
from bench.measure.case import DTYPES, Point, Provider, SkippedError
from bench.measure.harness import Contender
from bench.proof.agreement import pair, settled_pair
from fe_adapter.kernels.spec import DESIGNS

BASELINE = "st-adapter"


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [_point("both", 3, B=1, T=4, N=16, D=64, R=16, dtype="float32")]
    if device.type == "cpu":
        size: dict[str, Any] = {"B": 2, "T": 8, "N": 196, "D": 768, "R": 384, "dtype": "float32"}
        widths, growth, rounds = (64, 384), {"B": (1, 4), "T": (2, 16, 32), "N": (49, 784)}, 30
    else:
        size = {"B": 8, "T": 8, "N": 196, "D": 768, "R": 384, "dtype": "bfloat16"}
        widths, growth, rounds = (64, 128, 384, 512), {"B": (1, 4, 16, 32), "T": (2, 16, 32), "N": (49, 256, 784)}, 50
    main = [_point("both", rounds, thorough=True, **size | {"R": R}) for R in widths]
    parts = [_point(part, rounds, **size | {"R": R}) for part, R in itertools.product(("forward", "backward"), widths)]
    grown = [_point("both", rounds // 3, **size | {name: value}) for name in growth for value in growth[name]]
    return [*main, *parts, *grown]


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    B, T, N, D, R = (point[name] for name in "BTNDR")
    dtype = DTYPES[point["dtype"]]
    torch.manual_seed(0)
    work = Work.random((B * T, N + 1, D), point["pass"], device, dtype)
    options: dict[str, Any] = {"num_frames": T, "device": device, "dtype": dtype}
    static, fused_static = pair(D, R, dilation=1, **options)
    dynamic, fused_dynamic = settled_pair(D, R, **options)
    without = Formulation(static, None)

    def contender(build: Callable[[], nn.Module], reference: nn.Module = static) -> Callable[[], Contender]:
        return lambda: work.contender(build(), reference)

    def st_adapter(channels_last: bool = False) -> STAdapter:
        return STAdapter(D, R, T, channels_last=channels_last).to(device, dtype).load(static)

    found = {
        "st-adapter": Provider(contender(st_adapter)),
        "st-adapter channels-last": Provider(contender(lambda: st_adapter(channels_last=True))),
        "shifted adds": Provider(contender(lambda: Formulation(static, shifted_adds))),
        "causal-conv1d": Provider(contender(lambda: Formulation(static, causal_conv1d()))),
        "fla": Provider(contender(lambda: Formulation(static, fla_conv1d()))),
        "plain dynamic": Provider(contender(lambda: dynamic, dynamic)),
        "static": Provider(contender(lambda: fused_static), "ours"),
        "dynamic": Provider(contender(lambda: fused_dynamic, dynamic), "ours"),
        "no convolution": Provider(contender(lambda: without, without), "floor"),
        "six products": Provider(
            lambda: Contender(getattr(SixProducts(B * T * N, D, R, device, dtype), point["pass"])), "floor"
        ),
    }
    if point["pass"] != "both":
        return found
    if point.thorough:
        torch._dynamo.reset()  # what other points compiled counts towards its limit
        found["st-adapter compiled"] = Provider(contender(lambda: compiled(st_adapter())))
        found["shifted adds compiled"] = Provider(contender(lambda: compiled(Formulation(static, shifted_adds))))
        if device.type == "cuda":
            found["plain dynamic compiled"] = Provider(contender(lambda: compiled(dynamic), dynamic))
    if device.type == "cuda":
        found["st-adapter without cuDNN"] = Provider(lambda: _without_cudnn(work.contender(st_adapter(), static)))
        found["st-adapter graphed"] = Provider(lambda: work.graphed_contender(st_adapter()))
        for name, fused, reference in (("static", fused_static, static), ("dynamic", fused_dynamic, dynamic)):
            found[f"{name} graphed"] = Provider(partial(work.graphed_contender, fused), "ours")
            for design in ("eager", *DESIGNS):
                found[f"{name} {design} graphed"] = Provider(
                    partial(_graphed_design, work, fused, reference, design), "design"
                )
    return found


def _without_cudnn(contender: Contender) -> Contender:
    """``contender`` on PyTorch's own convolutions."""

    def step(prepared: Any) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            contender.step(prepared)

    return dataclasses.replace(contender, step=step)


def _graphed_design(work: Work, module: nn.Module, reference: nn.Module, design: str) -> Contender:
    """``module`` on one design ("eager" is none), whatever the launch plans would choose, as a graph: the GPU's time.

    Raises:
        SkippedError: the design cannot run here.
    """
    variable = "FE_ADAPTER_BACKEND" if design == "eager" else "FE_ADAPTER_DESIGN"
    with mock.patch.dict(os.environ, {variable: design}):
        contender = work.contender(module, reference)
        try:
            contender.step(contender.prepare())
        except RuntimeError as error:
            raise SkippedError(str(error)) from None
        contender.check()
        return work.graphed_contender(module)


def _point(part: str, rounds: int, thorough: bool = False, **size: Any) -> Point:
    return Point({"pass": part, **size}, rounds, thorough=thorough)
