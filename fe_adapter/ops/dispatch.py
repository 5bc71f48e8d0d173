"""Which implementation serves a call: the one place that chooses, and that reads the environment variables."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fe_adapter.checks import BACKENDS, check_choice
from fe_adapter.kernels.spec import DESIGNS, PAD, AdapterSpec, Weights
from fe_adapter.kernels.support import unsupported_reasons
from fe_adapter.ops import eager_conv, products

_log = logging.getLogger("fe_adapter")


class Implementation(NamedTuple):
    """One way to compute an adapter: its name, and what it runs in each direction, as `products` says."""

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, Weights]]


def choose(backend: str, x: Tensor, weights: Weights, spec: AdapterSpec) -> Implementation:
    """What serves a call on ``x`` (B, T, L, D): "eager", or a design of the Triton backend.

    ``FE_ADAPTER_BACKEND`` replaces "auto", which takes Triton where it can run and logs a fall-back once.
    ``FE_ADAPTER_DESIGN`` replaces the choice of the launch plans, where Triton serves.

    Raises:
        InputError: a variable names no backend or design.
        RuntimeError: Triton, or a design of it, was asked for and cannot run; the message lists every reason.
    """
    if _imagined is not None and backend != "eager":
        return _imagined
    asked_by = "backend='triton'" if backend == "triton" else "FE_ADAPTER_BACKEND=triton"
    if backend == "auto":
        backend = os.environ.get("FE_ADAPTER_BACKEND") or "auto"
        check_choice("FE_ADAPTER_BACKEND", backend, BACKENDS)
    if backend == "eager":
        return EAGER
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
        return EAGER
    if x.numel() == 0:
        return EAGER  # nothing to launch
    from fe_adapter.kernels import plans  # not before it is needed: it imports Triton

    if not design:
        design = plans.choose_design(x, spec.compute_dtype, bottleneck, weights.conv)
    elif reasons := plans.refusals(design, x, spec.compute_dtype, bottleneck, weights.conv):
        raise RuntimeError(f"FE_ADAPTER_DESIGN={design} cannot run here: {'; '.join(reasons)}. Use gemm")
    return _of_design(design)


@contextlib.contextmanager
def imagine(convolution: products.Convolution) -> Iterator[None]:
    """Within the context adapters run around ``convolution``, whatever the device: for estimates on fake tensors."""
    global _imagined
    before, _imagined = _imagined, _around("imagined", convolution)
    try:
        yield
    finally:
        _imagined = before


def _around(name: str, convolution: products.Convolution) -> Implementation:
    return Implementation(
        name, partial(products.forward, convolution=convolution), partial(products.backward, convolution=convolution)
    )


EAGER = _around("eager", eager_conv)
_imagined: Implementation | None = None


@functools.cache
def _of_design(design: str) -> Implementation:
    from fe_adapter.kernels import conv  # not before they are needed: they import Triton
    from fe_adapter.ops import fused

    module, options = (products, {"convolution": conv}) if design == "gemm" else (fused, {"design": design})
    return Implementation(design, _on_its_device(module.forward, options), _on_its_device(module.backward, options))


def _on_its_device(function: Callable, options: dict[str, Any]) -> Callable:
    """``function`` with the device of its first argument as the current one, which is where Triton launches."""

    def run(z: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(z):
            return function(z, *arguments, **options)

    return run


@functools.cache
def _log_fall_back(device_type: str, reasons: str) -> None:
    level = logging.WARNING if device_type == "cuda" else logging.INFO
    _log.log(level, "the adapter runs on the eager backend: %s", reasons)
