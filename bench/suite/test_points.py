"""The quick points of every case under pytest-benchmark: ``pytest bench --benchmark-only``."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")

from bench.cases import get_cases
from bench.measure.case import SkippedError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PARAMETERS = [
    pytest.param(case, point, name, id=f"{case_name}-{point}-{name}".replace(" ", "-"))
    for case_name, case in get_cases().items()
    for point in case.points(DEVICE, quick=True)
    for name in case.providers(point, DEVICE)
]


@pytest.mark.parametrize(("case", "point", "provider"), PARAMETERS)
def test_case(benchmark, case, point, provider):
    torch.manual_seed(0)
    try:
        contender = case.providers(point, DEVICE)[provider].build()
    except (SkippedError, ImportError) as reason:
        pytest.skip(str(reason))
    contender.check()
    benchmark.group = f"{case.__name__.rpartition('.')[2]} {point}"
    benchmark.pedantic(
        lambda prepared: _finished(contender.step(prepared)),
        setup=lambda: ((contender.prepare(),), {}),
        rounds=point.rounds,
        warmup_rounds=point.warmup,
    )


def _finished(result: object) -> object:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result
