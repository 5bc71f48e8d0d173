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

from bench.cases.rivals import RIVALS, SixProducts, no_convolution, shifted_adds, st_adapter
from bench.cases.work import Work, at_work, compiled
from bench.measure.case import DTYPES, Point, Provider, SkippedError
from bench.measure.harness import Contender
from fe_adapter.kernels.spec import DESIGNS

BASELINE = "st-adapter"


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [_point("both", 3, B=1, T=4, N=16, D=64, R=16, dtype="float32")]
    size: dict[str, Any] = {"B": 2, "T": 8, "N": 196, "D": 768, "R": 384, "dtype": "float32"}
    widths, rounds = [64, 384], 30
    growth = {"B": [1, 4], "T": [2, 16, 32], "N": [49, 784]}
    if device.type == "cuda":
        size |= {"B": 8, "dtype": "bfloat16"}
        widths, rounds = [64, 128, 384, 512], 50
        growth = {"B": [1, 4, 16, 32], "T": [2, 16, 32], "N": [49, 256, 784]}
    main = [_point("both", rounds, thorough=True, **size | {"R": R}) for R in widths]
    parts = [_point(part, rounds, **size | {"R": R}) for part, R in itertools.product(("forward", "backward"), widths)]
    grown = [_point("both", rounds // 3, **size | {name: value}) for name in growth for value in growth[name]]
    return [*main, *parts, *grown]


def _point(part: str, rounds: int, thorough: bool = False, **size: Any) -> Point:
    return Point({"pass": part, **size}, rounds, thorough=thorough)


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    B, T, N, D, R = (point[name] for name in "BTNDR")
    work, (static, fused_static), (dynamic, fused_dynamic) = at_work(point, device, point["pass"])
    bare = no_convolution(static)

    def provider(build: Callable[[], nn.Module], reference: nn.Module = static, role: str = "rival") -> Provider:
        return Provider(lambda: work.contender(build(), reference), role)

    def six_products() -> Contender:
        return Contender(getattr(SixProducts(B * T * N, D, R, device, DTYPES[point["dtype"]]), point["pass"]))

    found = {name: provider(partial(build, static)) for name, build in RIVALS.items()}
    found |= {
        "plain dynamic": provider(lambda: dynamic, dynamic),
        "static": provider(lambda: fused_static, static, "ours"),
        "dynamic": provider(lambda: fused_dynamic, dynamic, "ours"),
        "no convolution": provider(lambda: bare, bare, "floor"),
        "six products": Provider(six_products, "floor"),
    }
    if point["pass"] != "both":
        return found
    if point.thorough:
        found["st-adapter compiled"] = provider(lambda: compiled(st_adapter(static)))
        found["shifted adds compiled"] = provider(lambda: compiled(shifted_adds(static)))
        if device.type == "cuda":
            found["plain dynamic compiled"] = provider(lambda: compiled(dynamic), dynamic)
    if device.type == "cuda":
        found["st-adapter without cuDNN"] = Provider(lambda: _without_cudnn(found["st-adapter"].build()))
        found["st-adapter graphed"] = Provider(lambda: work.graphed_contender(st_adapter(static), static))
        for name, fused, reference in (("static", fused_static, static), ("dynamic", fused_dynamic, dynamic)):
            found[f"{name} graphed"] = Provider(partial(work.graphed_contender, fused, reference), "ours")
            for design in ("eager", *DESIGNS):
                build = partial(graphed_design, work, fused, reference, design)
                found[f"{name} {design} graphed"] = Provider(build, "design")
    return found


def _without_cudnn(contender: Contender) -> Contender:
    """``contender`` on PyTorch's own convolutions."""

    def step(prepared: Any) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            contender.step(prepared)

    return dataclasses.replace(contender, step=step)


def graphed_design(work: Work, module: nn.Module, reference: nn.Module, design: str) -> Contender:
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
        return work.graphed_contender(module, reference)
