"""Which design is the fastest up to which R: the rows of `CHOICE` in `fe_adapter.kernels.plans`, made anew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench.tuning import cost
from fe_adapter.kernels.plans import CHOICE
from fe_adapter.kernels.spec import DESIGNS

Rows = dict[int, str]  # design by the largest R it is the fastest for; beyond the last, gemm


def predicted() -> Iterator[tuple[str, Rows, Rows]]:
    """Each card the model knows: its name, the fastest designs, and what the table says now."""
    for name, card in cost.CARDS.items():
        fastest = {R: cost.faster(cost.Shape(R=R), card) for R in cost.BOTTLENECKS}
        yield name, as_rows(fastest), CHOICE.get(card.capability, {})


def measured(content: dict[str, Any]) -> Rows:
    """The fastest in a result file that `make gpu` or ``layer`` wrote on a GPU: both ways, static, as graphs."""
    fastest: dict[int, str] = {}
    for record in content["records"]:
        times = {d: record["providers"].get(f"static {d} graphed") for d in DESIGNS}
        medians = {d: np.median(provider["ms"]) for d, provider in times.items() if provider is not None}
        if record["case"] == "layer" and record["point"]["pass"] == "both" and medians:
            fastest.setdefault(record["point"]["R"], min(medians, key=lambda design: medians[design]))
    return as_rows(fastest)


def as_rows(fastest: Mapping[int, str]) -> Rows:
    """``{64: "fused", 128: "fused", 384: "gemm"}`` as ``{128: "fused"}``."""
    rows: Rows = {}
    for design, widths in itertools.groupby(sorted(fastest), key=lambda R: fastest[R]):
        rows[max(widths)] = design
    if rows and rows[max(rows)] == "gemm":
        del rows[max(rows)]
    return rows
