"""What a bug report needs to know of the machine."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from fe_adapter.kernels.support import unsupported_reasons

LIBRARIES = (
    "fe-adapter", "torch", "triton", "numpy", "einops", "safetensors", "timm", "transformers", "open_clip_torch",
    "torchvision", "av", "accelerate", "xformers",
)  # fmt: skip


def describe_environment() -> dict[str, str]:
    """Versions, devices and backends, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    found["device"] = torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads"
    found["CUDA of torch"] = torch.version.cuda or "none"
    for dtype in (torch.float32, torch.bfloat16):
        reasons = unsupported_reasons(device, dtype)
        found[f"triton backend, {dtype}"] = "; ".join(reasons) or "runs"
    return found
