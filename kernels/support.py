"""Whether the Triton kernels can serve a call, and if not, every reason why. Importing this never imports Triton."""

from __future__ import annotations

import functools

import torch
from torch.torch_version import TorchVersion

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Every reason why the Triton backend cannot compute in ``dtype`` on ``device``; empty if it can."""
    if device.type == "cuda":
        return list(_reasons_on_gpu(device, dtype))
    return _find_reasons(device, dtype)


@functools.cache  # asked on every call, and the same every time
def _reasons_on_gpu(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    return tuple(_find_reasons(device, dtype))


def _find_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    reasons = []
    if problem := _problem_of_triton():
        reasons.append(problem)
    if device.type != "cuda" and not is_interpreting():
        reasons.append(f"the tensors are on {device}, not on a GPU")
    if is_interpreting() and not _can_interpret():
        reasons.append("the interpreter of Triton 3.6 needs NumPy below 2.4")
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 5):
            reasons.append(f"compute capability {capability[0]}.{capability[1]} is below 7.5")
        elif dtype == torch.bfloat16 and capability < (8, 0):
            reasons.append(f"compute capability {capability[0]}.{capability[1]} has no bfloat16; use float16")
    if dtype not in SUPPORTED_DTYPES:
        reasons.append(f"{dtype} is not supported (float32, bfloat16, float16 are)")
    return reasons


def is_interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    if _problem_of_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _can_interpret() -> bool:
    import numpy
    import triton

    return TorchVersion(triton.__version__) >= "3.7" or TorchVersion(numpy.__version__) < "2.4"


@functools.cache
def _problem_of_triton() -> str:
    """Why it cannot be used; empty if it can."""
    try:
        import triton

        version = TorchVersion(triton.__version__)
    except Exception:  # a broken installation may raise anything
        return "Triton is not installed or cannot be imported"
    return f"Triton {version} is older than 3.6" if version < "3.6" else ""
