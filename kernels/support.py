"""Whether the Triton kernels can serve a call, and if not, every reason why. Importing this never imports Triton."""

from __future__ import annotations

import importlib.util

import torch

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Every reason why the Triton backend cannot compute in ``dtype`` on ``device``; empty if it can."""
    reasons = ["this version of fe-adapter ships no Triton kernels yet"]
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed")
    if device.type != "cuda":
        reasons.append(f"the tensors are on {device}, not on a GPU")
    if dtype not in SUPPORTED_DTYPES:
        reasons.append(f"{dtype} is not supported (float32, bfloat16, float16 are)")
    return reasons
