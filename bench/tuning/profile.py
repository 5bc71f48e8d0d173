"""Where a layer's time goes on a GPU: every kernel of one forward and backward, and the host that queues them."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.measure.harness import empty_l2
from bench.proof.agreement import settled_pair
from bench.proof.checks import chosen, serves
from fe_adapter.kernels.spec import DESIGNS

SHAPE = {"B": 8, "T": 8, "N": 196, "P": 1, "D": 768}
EMPTIES = "FillFunctor<signed char>"  # in the name of the kernel that empties the L2 cache


def records(bottlenecks: tuple[int, ...] = (384, 64), deadline: float = math.inf) -> Iterator[dict[str, Any]]:
    """A record for every R, form and design that serves it: its ``kernels``, ``gpu_us``, ``host_us``; or ``failed``.

    After ``deadline`` (of `time.monotonic`) it says "not run".
    """
    B, T, N, P, D = SHAPE.values()
    dilations: tuple[int | str, ...] = (1, "dynamic")
    for R, dilation, design in itertools.product(bottlenecks, dilations, DESIGNS):
        if not serves(torch.device("cuda"), design, torch.bfloat16, (B, T, N, P, D, R), {}):
            continue
        record: dict[str, Any] = {"R": R, "dilation": dilation, "design": design}
        if time.monotonic() > deadline:
            yield record | {"failed": "not run"}
            continue
        try:
            step = layer_step(R, dilation)
            with chosen(design):
                kernels, host_us = kernel_times(step), host_time(step)
        except Exception as error:  # what a launch that fails raises, or too little memory: the others go on
            yield record | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        else:
            gpu_us = round(sum(row["us"] for row in kernels), 1)
            yield record | {"gpu_us": gpu_us, "host_us": round(host_us, 1), "kernels": kernels}


def summary(record: dict[str, Any]) -> str:
    """A record of `records` in a few words."""
    found = record.get("failed") or f"GPU {record['gpu_us']:.0f} µs, host {record['host_us']:.0f} µs"
    return f"R={record['R']} dilation={record['dilation']} {record['design']}: {found}"


def layer_step(R: int, dilation: int | str) -> Callable[[], None]:
    """Forward and backward of a layer in bf16 on a GPU."""
    B, T, N, P, D = SHAPE.values()
    _, layer = settled_pair(D, R, dilation=dilation, num_frames=T, device="cuda", dtype=torch.bfloat16)
    x, dy = torch.randn(2, B * T, P + N, D, device="cuda").to(torch.bfloat16)
    x.requires_grad_()

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(dy)

    return step


def kernel_times(step: Callable[[], None], rounds: int = 5) -> list[dict[str, Any]]:
    """Every kernel that ``step`` runs, in their order: its name, launches and µs a step, from an empty L2 cache."""
    step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            empty_l2()
            step()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    events = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    for event in sorted(events, key=lambda event: event.time_range.start):
        if EMPTIES not in event.name:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return [
        {"name": name, "launches": len(us) / rounds, "us": round(sum(us) / rounds, 1)} for name, us in found.items()
    ]


def host_time(step: Callable[[], None], rounds: int = 30) -> float:
    """Median µs until ``step`` returns, with nothing queued before it."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)
