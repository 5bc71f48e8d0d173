"""Which backend serves a call. The one place that reads the environment variables of the library."""

from __future__ import annotations

import functools
import logging
import os

import torch

from fe_adapter.config import BACKENDS, check_choice
from fe_adapter.kernels.support import unsupported_reasons

_log = logging.getLogger("fe_adapter")


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "eager" for a call that computes in ``dtype`` on ``device``.

    ``FE_ADAPTER_BACKEND`` replaces "auto". "auto" takes Triton where it can run and logs a fall-back once.

    Raises:
        RuntimeError: Triton was asked for and cannot run; the message lists every reason.
    """
    if backend == "auto":
        backend = os.environ.get("FE_ADAPTER_BACKEND") or "auto"
        check_choice("FE_ADAPTER_BACKEND", backend, BACKENDS)
    if backend == "eager":
        return "eager"
    reasons = unsupported_reasons(device, dtype)
    if not reasons:
        return "triton"
    if backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run here: {'; '.join(reasons)}. Use backend='auto' or 'eager'")
    _log_fall_back(device.type, "; ".join(reasons))
    return "eager"


@functools.cache
def _log_fall_back(device_type: str, reasons: str) -> None:
    level = logging.WARNING if device_type == "cuda" else logging.INFO
    _log.log(level, "the adapter runs on the eager backend: %s", reasons)
