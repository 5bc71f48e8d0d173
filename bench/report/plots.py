"""The plots of a result file: ratios, memory ladder, growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.measure.results import Record, point_name
from bench.report.compare import between
from fe_adapter.files import new_figure

COLORS = {"ours": "tab:blue", "design": "tab:cyan", "rival": "tab:orange", "floor": "tab:gray"}
GROWING = ("B", "T", "N")
Draw = Callable[[Any], None]  # onto matplotlib axes


def draw(content: dict[str, Any]) -> dict[str, Any]:
    """Every plot that the records of ``content`` are enough for, by name."""
    figures = {}
    for name, on_axes in _plots(content).items():
        figures[name], axes = new_figure(8, 5)
        on_axes(axes)
    return figures


def names(content: dict[str, Any]) -> list[str]:
    """The names of the plots that `draw` would make."""
    return list(_plots(content))


def _plots(content: dict[str, Any]) -> dict[str, Draw]:
    records = [record for record in content["records"] if record["providers"]]
    plots: dict[str, Draw] = {}
    for case in dict.fromkeys(record["case"] for record in records):
        of_case = [record for record in records if record["case"] == case]
        plots[f"{case}-ratios"] = partial(_ratios, of_case[:3])
        if case == "ladder" or any("estimated peak" in p["bytes"] for p in of_case[0]["providers"].values()):
            plots[f"{case}-memory"] = partial(_memory, of_case[0])
        for parameter in GROWING:
            series = _series(of_case, parameter)
            if len(series) > 2:
                plots[f"{case}-by-{parameter}"] = partial(_growth, series, parameter)
    return plots


def _ratios(records: list[Record], axes: Any) -> None:
    """Time over the baseline's, with intervals: a group of bars for each point, one bar a provider."""
    labels: list[str] = []
    for record in records:
        labels.append(_short(record))
        for name, provider in record["providers"].items():
            value, low, high = between(record, name)
            whiskers = None if math.isnan(low) else [[value - low], [high - value]]
            axes.barh(len(labels), value, xerr=whiskers, color=COLORS[provider["role"]])
            labels.append(name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel=f"time over {records[0]['baseline']}'s (blue: ours; cyan: other designs; grey: less work); 95 %")
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.invert_yaxis()


def _memory(record: Record, axes: Any) -> None:
    """Peak memory, one rung below the other in the record's order, with the time of each."""
    rungs = {name: p for name, p in record["providers"].items() if "peak" in p["bytes"]}
    peaks = [provider["bytes"]["peak"] / 2**20 for provider in rungs.values()]
    bars = axes.barh(list(rungs), peaks, color=[COLORS[provider["role"]] for provider in rungs.values()])
    axes.bar_label(
        bars, [f"{m:,.0f} MiB, {np.median(p['ms']):,.0f} ms" for m, p in zip(peaks, rungs.values(), strict=True)]
    )
    axes.set(xlim=(0, 1.4 * max(peaks)), xlabel="peak memory of a step, MiB", title=_short(record))
    axes.invert_yaxis()


def _growth(series: list[Record], parameter: str, axes: Any) -> None:
    """Median time of every provider as one parameter grows."""
    for name in series[0]["providers"]:
        points = [
            (r["point"][parameter], np.median(r["providers"][name]["ms"])) for r in series if name in r["providers"]
        ]
        style = "-" if series[0]["providers"][name]["role"] == "ours" else ":"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=name)
    rest = {name: value for name, value in series[0]["point"].items() if name != parameter}
    axes.set(
        xscale="log", yscale="log", xlabel=parameter, ylabel="ms", title=" ".join(f"{k}={v}" for k, v in rest.items())
    )
    sizes = [record["point"][parameter] for record in series]
    axes.set_xticks(sizes, sizes)
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=7)


def _series(records: list[Record], parameter: str) -> list[Record]:
    """The longest run of records that differ in ``parameter`` alone, in its order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if parameter in record["point"]:
            groups.setdefault(str({k: v for k, v in record["point"].items() if k != parameter}), []).append(record)
    longest = max(groups.values(), key=len, default=[])
    return sorted(longest, key=lambda record: record["point"][parameter])


def _short(record: Record) -> str:
    return point_name(record, without=("dtype", "precision"))
