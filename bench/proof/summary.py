"""What a compile proof comes to: the worst of every kernel, in a file that is whole after each launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.proof.ahead import Report
from bench.proof.launches import problems
from fe_adapter.files import write_csv

Row = dict[str, Any]
WORST: dict[str, Callable[..., Any]] = {  # of each figure of a `Report`
    "registers": max, "spilled": max, "smem": max, "tensor_memory": max, "is_serialized": max,
    "blocks_per_sm": min, "tensor_core": min, "barriers": min,
}  # fmt: skip


def worst(reports: Iterable[Report]) -> list[Row]:
    """A row for each kernel of each design on each target: of how many launches, and the worst of every figure.

    ``case`` is the one that spills the most, or else has the most registers; the other figures may be another's.
    """
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for report in reports:
        groups.setdefault((report.target, report.kernel, report.design), []).append(report)
    rows = []
    for (target, kernel, design), of_one in groups.items():
        figures = {name: choose(getattr(report, name) for report in of_one) for name, choose in WORST.items()}
        case = max(of_one, key=lambda report: (report.spilled, report.registers)).case
        found = dict.fromkeys(problem for report in of_one for problem in problems(report))
        names = {"target": target, "kernel": kernel, "design": design, "launches": len(of_one)}
        rows.append({**names, **figures, "case": case, "problems": "; ".join(found)})
    return rows


def every(reports: Iterable[Report]) -> list[Row]:
    """A row for each launch."""
    return [{**dataclasses.asdict(report), "problems": "; ".join(problems(report))} for report in reports]


def written(reports: Iterable[Report], path: Path, every_launch: bool = False) -> Iterator[Report]:
    """The same reports; after each, `worst` of those until then, or `every` one, is a CSV file.

    Raises:
        InputError: the file cannot be written.
    """
    done: list[Report] = []
    write_csv(path, [])  # that it cannot be written is to show before anything is compiled
    for report in reports:
        done.append(report)
        rows = every(done) if every_launch else worst(done)
        write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)])
        yield report
