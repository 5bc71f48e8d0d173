"""The plots of a result file: times, memory ladder, growth."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.measure.results import Record, point_name
from bench.report.compare import between
from fe_adapter.files import new_figure

COLORS = {"ours": "tab:blue", "design": "tab:cyan", "rival": "tab:orange", "floor": "tab:gray"}
STYLES = ("-", "--", ":", "-.")  # of one role's lines
GROWING = ("B", "T", "N")
GRAPHED = " graphed"  # the end of a provider's name whose step is captured as a CUDA graph
MOST_POINTS = 3  # beside each other
Draw = Callable[[], Any]  # a matplotlib figure


def draw(content: dict[str, Any]) -> dict[str, Any]:
    """Every plot that the records of ``content`` are enough for, by name."""
    return {name: make() for name, make in _plots(content).items()}


def names(content: dict[str, Any]) -> list[str]:
    """The names of the plots that `draw` would make."""
    return list(_plots(content))


def _plots(content: dict[str, Any]) -> dict[str, Draw]:
    records = [record for record in content["records"] if record["providers"]]
    plots: dict[str, Draw] = {}
    for case in dict.fromkeys(record["case"] for record in records):
        of_case = [record for record in records if record["case"] == case]
        plots[f"{case}-times"] = partial(_times, of_case[:MOST_POINTS], ("ours", "rival", "floor"))
        if any(provider["role"] == "design" for provider in of_case[0]["providers"].values()):
            plots[f"{case}-designs"] = partial(_times, of_case[:MOST_POINTS], ("ours", "design"))
        if case == "ladder" or any("estimated peak" in p["bytes"] for p in of_case[0]["providers"].values()):
            plots[f"{case}-memory"] = partial(_memory, of_case[0])
        for parameter in GROWING:
            series = _series(of_case, parameter)
            if len(series) > 2:
                plots[f"{case}-by-{parameter}"] = partial(_growth, series, parameter)
    return plots


def _times(records: list[Record], roles: tuple[str, ...]) -> Any:
    """Milliseconds of every provider of these roles, eager and as a CUDA graph, a panel for each point.

    Bars that are much longer than the baseline's and ours are cut off, and say how long they are.
    """
    shown = [name for record in records for name, p in record["providers"].items() if p["role"] in roles]
    rows = list(dict.fromkeys(name.removesuffix(GRAPHED) for name in [records[0]["baseline"], *shown]))
    is_captured = any(name.endswith(GRAPHED) for name in shown)
    figure, first = new_figure(2 + 4.2 * len(records), 1.2 + (0.42 if is_captured else 0.26) * len(rows))
    first.remove()
    panels = figure.subplots(1, len(records), sharey=True, squeeze=False)[0]
    for record, axes in zip(records, panels, strict=True):
        _panel(record, rows, axes)
        axes.set(title=_wrapped(_short(record)), xlabel="ms")
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].invert_yaxis()
    theirs = f"{records[0]['baseline']}'s, run the same way"
    modes = "; solid: eager, hatched: as a CUDA graph" if is_captured else ""
    others = "light blue: a design of ours, whatever the plans choose" if "design" in roles else "grey: does less"
    figure.supxlabel(f"×: of {theirs}; blue: ours; {others}{modes}; whiskers: 20 to 80 %", fontsize=9)
    return figure


def _panel(record: Record, rows: list[str], axes: Any) -> None:
    providers, baseline = record["providers"], record["baseline"]
    kept = [baseline, baseline + GRAPHED, *(name for name, p in providers.items() if p["role"] == "ours")]
    limit = 1.25 * max(np.median(providers[name]["ms"]) for name in kept if name in providers)
    for i, row in enumerate(rows):
        there = [(suffix, row + suffix) for suffix in ("", GRAPHED) if row + suffix in providers]
        for suffix, name in there:
            low, ms, high = np.quantile(providers[name]["ms"], (0.2, 0.5, 0.8))
            y, height = (i + (0.2 if suffix else -0.2), 0.36) if len(there) > 1 else (i, 0.6)
            style: dict[str, Any] = {"color": COLORS[providers[name]["role"]]}
            if suffix:
                style |= {"hatch": "////", "edgecolor": "white", "linewidth": 0}
            axes.barh(y, min(ms, limit), height, **style)
            if ms <= limit:
                axes.plot([low, min(high, limit)], [y, y], color="black", linewidth=1)
            over = (
                "" if baseline + suffix not in providers else f"  {between(record, name, baseline + suffix).value:.2f}×"
            )
            beyond = " ▸" if ms > limit else ""
            axes.text(
                min(max(ms, high), limit) + 0.01 * limit, y, f"{_in_ms(ms)}{over}{beyond}", va="center", fontsize=8
            )
    axes.set_xlim(0, 1.35 * limit)
    axes.spines[["top", "right"]].set_visible(False)


def _in_ms(ms: float) -> str:
    return f"{ms:.{max(0, 2 - int(math.log10(max(ms, 1))))}f}"


def _wrapped(title: str) -> str:
    return textwrap.fill(title, 40)


def _memory(record: Record) -> Any:
    """Peak memory, one rung below the other in the record's order, with the time of each."""
    rungs = {name: p for name, p in record["providers"].items() if "peak" in p["bytes"]}
    peaks = [provider["bytes"]["peak"] / 2**20 for provider in rungs.values()]
    figure, axes = new_figure(8, 1 + 0.3 * len(rungs))
    bars = axes.barh(list(rungs), peaks, color=[COLORS[provider["role"]] for provider in rungs.values()])
    axes.bar_label(
        bars, [f"{m:,.0f} MiB, {np.median(p['ms']):,.0f} ms" for m, p in zip(peaks, rungs.values(), strict=True)]
    )
    axes.set(xlim=(0, 1.4 * max(peaks)), xlabel="peak memory of a step, MiB", title=_short(record))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _growth(series: list[Record], parameter: str) -> Any:
    """Time over the baseline's of every provider, as one parameter grows."""
    figure, axes = new_figure(8, 5)
    sizes, baseline = [record["point"][parameter] for record in series], series[0]["baseline"]
    drawn: dict[str, int] = {}  # lines by role
    for name, provider in series[0]["providers"].items():
        if name == baseline or provider["role"] == "design" or name.endswith(GRAPHED):
            continue
        points = [(i, between(r, name).value) for i, r in enumerate(series) if name in r["providers"]]
        style = STYLES[drawn.setdefault(provider["role"], 0) % len(STYLES)]
        drawn[provider["role"]] += 1
        width = 2.5 if provider["role"] == "ours" else 1.2
        axes.plot(*zip(*points, strict=True), style, color=COLORS[provider["role"]], linewidth=width, label=name)
    rest = {name: value for name, value in series[0]["point"].items() if name not in (parameter, "dtype", "precision")}
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xlabel=parameter, ylabel=f"time over {baseline}'s", title=" ".join(f"{k}={v}" for k, v in rest.items()))
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


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
