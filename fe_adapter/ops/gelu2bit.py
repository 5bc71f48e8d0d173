"""GELU that keeps two bits an element for backward instead of its input: memory policy ``gelu2bit``.

Forward is exact. Backward multiplies by a step function of four values in place of GELU's derivative (ReGELU2 of
Approx-BP, arXiv 2406.16282), so the gradient is approximate. ``python -m bench gelu2bit`` derives the constants and
measures the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter.kernels.support import is_interpreting, unsupported_reasons
from fe_adapter.ops.registration import register


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": F.gelu,
    "tanh": partial(F.gelu, approximate="tanh"),
    "quick": _quick_gelu,
}
# kinks c, then the slopes 0, −a, 1 + a, 1 between them; derived by bench/tuning/gelu2bit.py
STEPS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    kind: ((-c, 0.0, c), (0.0, -a, 1 + a, 1.0))
    for kind, c, a in (
        ("erf", 3.171312223, 0.04957514734),
        ("tanh", 3.162878470, 0.04978617061),
        ("quick", 3.713241281, 0.04052426264),
    )
}
_KINDS = {  # by class name, in PyTorch, timm, transformers and open_clip
    "GELU": "erf", "GELUActivation": "erf", "GELUTanh": "tanh", "NewGELUActivation": "tanh",
    "PytorchGELUTanh": "tanh", "QuickGELU": "quick", "QuickGELUActivation": "quick",
}  # fmt: skip
_CHUNK = 2**18  # elements that a CPU packs at a time: few operators, and little memory beside


def kind_of_gelu(module: nn.Module) -> str | None:
    """Which of `GELUS` an activation module computes, if any."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "tanh"
    return _KINDS.get(type(module).__name__)


def gelu2bit(x: Tensor, kind: str = "erf") -> Tensor:
    """GELU of ``x``, any shape, with an approximate gradient; keeps ``x.numel() / 4`` bytes for backward."""
    return _GELU2Bit.apply(x, kind)


class _GELU2Bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(step_codes_op(x, STEPS[kind][0]))
        ctx.kind = kind
        return GELUS[kind](x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        return multiply_steps_op(dy, codes, STEPS[ctx.kind][1]), None


def step_codes(x: Tensor, positions: Sequence[float]) -> Tensor:
    """How many of three ``positions`` lie below each element of ``x``: two bits an element, four elements a byte."""
    x = x.contiguous().view(-1)
    codes = x.new_empty(-(-len(x) // 4), dtype=torch.uint8)
    if _uses_triton(x):
        from fe_adapter.kernels.gelu2bit import pack  # not before it is needed: it imports Triton

        with torch.cuda.device_of(x):  # Triton launches on the current one
            pack(x, torch.tensor(positions, dtype=x.dtype).tolist(), codes)  # rounded, as PyTorch compares
        return codes
    chunk = _CHUNK if x.device.type == "cpu" else max(4, 4 * len(codes))
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        code = (part > positions[0]).view(torch.uint8)
        for position in positions[1:]:
            code += (part > position).view(torch.uint8)
        words = F.pad(code, (0, -len(code) % 4)).view(torch.int32)  # four codes, eight bits each
        words.mul_(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6).bitwise_right_shift_(24)  # brings them side by side
        codes[start // 4 : (start + chunk) // 4] = words
    return codes


def _fake_step_codes(x, positions):
    return x.new_empty(-(-x.numel() // 4), dtype=torch.uint8)


def multiply_steps(dy: Tensor, codes: Tensor, values: Sequence[float]) -> Tensor:
    """``dy`` with each element multiplied by the one of four ``values`` that its two bits in ``codes`` name."""
    dy = dy.contiguous()
    dx = torch.empty_like(dy)
    if _uses_triton(dy):
        from fe_adapter.kernels.gelu2bit import multiply

        with torch.cuda.device_of(dy):
            multiply(dy.view(-1), codes, values, dx.view(-1))
        return dx
    shifts = torch.arange(0, 8, 2, device=dy.device)
    table = torch.tensor(values, dtype=dy.dtype, device=dy.device)[
        (torch.arange(256, device=dy.device)[:, None] >> shifts) & 3
    ]
    source, out = dy.view(-1), dx.view(-1)
    chunk = _CHUNK if dy.device.type == "cpu" else max(4, 4 * len(codes))
    for start in range(0, len(out), chunk):
        part = source[start : start + chunk]
        slopes = F.embedding(codes[start // 4 : (start + chunk) // 4].int(), table).view(-1)  # four to a byte
        torch.mul(part, slopes[: len(part)], out=out[start : start + chunk])
    return dx


def _fake_multiply_steps(dy, codes, values):
    return dy.new_empty(dy.shape)


def _uses_triton(x: Tensor) -> bool:
    return (x.is_cuda or is_interpreting()) and not unsupported_reasons(x.device, x.dtype)


step_codes_op = register(step_codes, _fake_step_codes)
multiply_steps_op = register(multiply_steps, _fake_multiply_steps)

IMPLEMENTATIONS: dict[Any, Callable] = {  # as of fe_adapter.ops.operator
    step_codes_op: step_codes,
    multiply_steps_op: multiply_steps,
}
