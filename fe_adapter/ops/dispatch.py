"""Which backend serves a call. The one place that reads the environment variables of the library."""

from __future__ import annotations

import functools
import logging
import os

from torch import Tensor

from fe_adapter.checks import BACKENDS, check_choice
from fe_adapter.kernels.spec import DESIGNS, PAD, AdapterSpec, Weights
from fe_adapter.kernels.support import unsupported_reasons

_log = logging.getLogger("fe_adapter")


def choose_design(backend: str, x: Tensor, weights: Weights, spec: AdapterSpec) -> str:
    """What serves a call on ``x`` (B, T, L, D): "eager", or the name of a design of the Triton backend.

    ``FE_ADAPTER_BACKEND`` replaces "auto", which takes Triton where it can run and logs a fall-back once.
    ``FE_ADAPTER_DESIGN`` replaces the choice of the launch plans, where Triton serves.

    Raises:
        InputError: a variable names no backend or design.
        RuntimeError: Triton, or a design of it, was asked for and cannot run; the message lists every reason.
    """
    asked_by = "backend='triton'" if backend == "triton" else "FE_ADAPTER_BACKEND=triton"
    if backend == "auto":
        backend = os.environ.get("FE_ADAPTER_BACKEND") or "auto"
        check_choice("FE_ADAPTER_BACKEND", backend, BACKENDS)
    if backend == "eager":
        return "eager"
    if design := os.environ.get("FE_ADAPTER_DESIGN"):
        check_choice("FE_ADAPTER_DESIGN", design, DESIGNS)
    reasons = unsupported_reasons(x.device, spec.compute_dtype)
    if x.shape[1] * x.shape[2] * (weights.down.shape[0] + PAD) >= 2**31:
        reasons.append(
            f"a clip (T, L, R) = {(*x.shape[1:3], weights.down.shape[0])} needs offsets of more than 32 bits"
        )
    if reasons and backend == "triton":
        raise RuntimeError(f"{asked_by} cannot run here: {'; '.join(reasons)}. Use auto or eager")
    if reasons:
        _log_fall_back(x.device.type, "; ".join(reasons))
        return "eager"
    if x.numel() == 0:
        return "eager"  # nothing to launch
    from fe_adapter.kernels import plans  # not before it is needed: it imports Triton

    bottleneck = weights.down.shape[0]
    if not design:
        return plans.choose_design(x, spec.compute_dtype, bottleneck, weights.conv)
    reasons = plans.refusals(design, x, spec.compute_dtype, bottleneck, weights.conv)
    if reasons:
        raise RuntimeError(f"FE_ADAPTER_DESIGN={design} cannot run here: {'; '.join(reasons)}. Use gemm")
    return design


@functools.cache
def _log_fall_back(device_type: str, reasons: str) -> None:
    level = logging.WARNING if device_type == "cuda" else logging.INFO
    _log.log(level, "the adapter runs on the eager backend: %s", reasons)
