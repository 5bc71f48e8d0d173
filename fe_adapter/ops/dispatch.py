"""Which implementation serves a call: the one place that chooses, and that reads the environment variables."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from fe_adapter.checks import BACKENDS, check_choice
from fe_adapter.kernels.spec import DESIGNS, PAD, AdapterSpec, Weights
from fe_adapter.kernels.support import unsupported_reasons
from fe_adapter.ops import products
from fe_adapter.ops.eager_conv import EagerConvolution

_log = logging.getLogger("fe_adapter")
VARIABLES = ("FE_ADAPTER_BACKEND", "FE_ADAPTER_DESIGN")


class Implementation(NamedTuple):
    """One way to compute an adapter: its name, and what it runs in each direction, as `products.Products` says."""

    name: str
    forward: Callable[..., products.Forward]
    backward: Callable[..., tuple[Tensor | None, Weights]]


def choose(backend: str, x: Tensor, weights: Weights, spec: AdapterSpec) -> Implementation:
    """What serves ``x`` (B, T, L, D) and its like: "eager", or a design of the Triton backend.

    ``FE_ADAPTER_BACKEND`` replaces "auto", which takes Triton where it can run and logs a fall-back once.
    ``FE_ADAPTER_DESIGN`` replaces the choice of the launch plans, where Triton serves.

    Raises:
        InputError: a variable names no backend or design.
        RuntimeError: Triton, or a design of it, was asked for and cannot run; the message lists every reason.
    """
    if _imagined is not None and backend != "eager":
        return _around("imagined", x, weights, spec, _imagined)
    asked_by = "backend='triton'" if backend == "triton" else "FE_ADAPTER_BACKEND=triton"
    if backend == "auto":
        backend = os.environ.get("FE_ADAPTER_BACKEND") or "auto"
        check_choice("FE_ADAPTER_BACKEND", backend, BACKENDS)
    if backend == "eager":
        return _around("eager", x, weights, spec, EagerConvolution)
    if design := os.environ.get("FE_ADAPTER_DESIGN"):
        check_choice("FE_ADAPTER_DESIGN", design, DESIGNS)
    bottleneck = weights.down.shape[0]
    reasons = unsupported_reasons(x.device, spec.compute_dtype)
    if x.shape[1] * x.shape[2] * (bottleneck + PAD) >= 2**31:
        reasons.append(f"a clip (T, L, R) = {(*x.shape[1:3], bottleneck)} needs offsets of more than 32 bits")
    if reasons and backend == "triton":
        raise RuntimeError(f"{asked_by} cannot run here: {'; '.join(reasons)}. Use auto or eager")
    if reasons:
        _log_fall_back(x.device.type, "; ".join(reasons))
    if reasons or x.numel() == 0:  # of an empty batch there is nothing to launch
        return _around("eager", x, weights, spec, EagerConvolution)
    from fe_adapter.kernels import plans  # not before it is needed: it imports Triton

    if not design:
        design = plans.choose_design(x, spec.compute_dtype, bottleneck, weights.conv)
    elif reasons := plans.refusals(design, x, spec.compute_dtype, bottleneck, weights.conv):
        raise RuntimeError(f"FE_ADAPTER_DESIGN={design} cannot run here: {'; '.join(reasons)}. Use gemm")
    return _of_design(design, x, weights, spec)


@contextlib.contextmanager
def imagine(make_convolution: products.MakeConvolution) -> Iterator[None]:
    """Within the context adapters run around what it makes, whatever the device: for estimates on fake tensors."""
    global _imagined
    before, _imagined = _imagined, make_convolution
    try:
        yield
    finally:
        _imagined = before


_imagined: products.MakeConvolution | None = None


def _around(
    name: str, x: Tensor, weights: Weights, spec: AdapterSpec, make_convolution: products.MakeConvolution
) -> Implementation:
    adapter = products.Products(x.shape, weights, spec, make_convolution)
    return Implementation(name, adapter.forward, adapter.backward)


def _of_design(design: str, x: Tensor, weights: Weights, spec: AdapterSpec) -> Implementation:
    from fe_adapter.kernels import conv  # not before they are needed: they import Triton
    from fe_adapter.ops.fused import fused

    if design == "gemm":
        return _around(design, x, weights, spec, conv.KernelConvolution)
    adapter = fused(x, weights, spec, design)
    return Implementation(design, adapter.forward, adapter.backward)


@functools.cache
def _log_fall_back(device_type: str, reasons: str) -> None:
    level = logging.WARNING if device_type == "cuda" else logging.INFO
    _log.log(level, "the adapter runs on the eager backend: %s", reasons)
