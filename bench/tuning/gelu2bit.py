"""Where the constants of memory policy ``gelu2bit`` come from, and how far its gradient is from the exact one.

Approx-BP (arXiv 2406.16282, §4) replaces the derivative of GELU in backward by a step function of four values, so that
two bits an element are kept. The steps are the slopes of the piecewise linear h̃ with three kinks that is closest to
GELU in ∫ (h − h̃)² dx. For every GELU here h(x) − x/2 is even, so the best h̃ − x/2 is even too: kinks at −c, 0 and c,
slopes 0, −a, 1 + a and 1. Two numbers are left. (The paper found three kinks by simulated annealing: −3.1859, −0.0012
and 3.1908 for the erf form.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fe_adapter.ops.gelu2bit import GELUS, STEPS, gelu2bit

_EDGE = 12.0  # beyond it GELU is 0 or x to the last bit of float64


def fit(gelu: Callable[[Tensor], Tensor], num_points: int = 120_001) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The three kinks and the four slopes between them for an activation, in float64.

    For x ≥ 0, h̃(x) = x − a·max(0, c − x). For each c the best a is a projection; the best c is searched for.
    """
    x = torch.linspace(0, _EDGE, num_points, dtype=torch.float64)  # the other half is its mirror image
    wanted = gelu(x) - x

    def projection(c: float) -> tuple[float, float]:
        basis = torch.relu(c - x)
        a = -torch.trapezoid(wanted * basis, x) / torch.trapezoid(basis * basis, x)
        return a.item(), torch.trapezoid((wanted + a * basis).square(), x).item()

    low, high = 1.0, 6.0
    while high - low > 1e-9:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if projection(left)[1] < projection(right)[1] else (left, high)
    a, c = projection(low)[0], low
    return (-c, 0.0, c), (0.0, -a, 1 + a, 1.0)


def gradient_error(kind: str, std: float, num_points: int = 1_000_000) -> float:
    """‖dx − exact‖ / ‖exact‖ of ``gelu2bit`` where its inputs are normal with deviation ``std``, and dy too."""
    torch.manual_seed(0)
    x = (torch.randn(num_points) * std).requires_grad_()
    dy = torch.randn(num_points)
    (exact,) = torch.autograd.grad(GELUS[kind](x), x, dy)
    (actual,) = torch.autograd.grad(gelu2bit(x, kind), x, dy)
    return ((actual - exact).norm() / exact.norm()).item()


def report() -> list[dict[str, object]]:
    """The constants of each kind of GELU derived anew, how far those in use are from them, and gradient errors."""
    rows = []
    for kind, gelu in GELUS.items():
        derived = fit(gelu)
        off = max(abs(a - b) for d, s in zip(derived, STEPS[kind], strict=True) for a, b in zip(d, s, strict=True))
        errors = {f"error at std {std:g}": gradient_error(kind, std) for std in (0.5, 1, 2, 4)}
        rows.append({"kind": kind, "kinks": derived[0], "slopes": derived[1], "largest difference": off}
                    | errors)  # fmt: skip
    return rows
