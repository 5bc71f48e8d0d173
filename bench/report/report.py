"""`bench/results/REPORT.md`, its plots, and a CSV of each result file: all out of result files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure.results import FOLDER, MIB, Record, is_suite, point_name
from bench.report import plots
from bench.report.compare import between
from bench.report.markdown import table
from fe_adapter.files import atomic_write, read_json, write_csv, write_figure

HEAD = """# Benchmarks

Made by `python -m bench report` out of the files in this folder; nothing here is typed. A ratio is the median over the
rounds of the ratio within a round, followed by its 95 % interval; below 1 is less time than the baseline's. Times are
medians, with the 20th and 80th percentile. Every provider first showed that it is right, in the same run. How, and what
that means for each: [docs/benchmarks.md](../../docs/benchmarks.md).
"""


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every result file of the suite in ``folder``, by its stem; quick ones are none."""
    contents = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {stem: content for stem, content in contents.items() if is_suite(content) and not content.get("quick")}


def write(folder: Path = FOLDER) -> None:
    """Write the report, its plots and the CSV files into ``folder``."""
    contents = load(folder)
    for stem, content in contents.items():
        write_csv(folder / f"{stem}.csv", list(_csv_rows(content)))
        for name, figure in plots.draw(content).items():
            write_figure(figure, folder / "plots" / f"{stem}-{name}.png")
    with atomic_write(folder / "REPORT.md") as file:
        file.write(text(contents).encode())


def text(contents: dict[str, dict[str, Any]]) -> str:
    """The report; what we lose comes first."""
    lines = [HEAD, "## What we lose", ""]
    for stem, content in contents.items():
        lines += _losses(stem, content)
    for stem, content in contents.items():
        machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items() if name != "device")
        lines += [f"## {content['machine']['device']}, `{stem}`", ""]
        lines += [f"{machine}. Raw rounds: `{stem}.json`; `{stem}.csv`.", ""]
        lines += [f"![{name}](plots/{stem}-{name}.png)" for name in plots.names(content)]
        lines += ["", *_checks(content)]
        done = [f"{record['case']} {point_name(record)}" for record in content["records"]]
        missing = [name for name in content.get("planned", ()) if name not in done]
        if missing:
            lines += [f"**Cut off**: {len(missing)} points are not measured: {'; '.join(missing)}.", ""]
        for record in content["records"]:
            lines += point_table(record)
    return "\n".join(lines)


def memory_columns(record: Record) -> list[str]:
    """The kinds of memory that were measured of any provider."""
    return list(dict.fromkeys(name for figures in record["providers"].values() for name in figures["bytes"]))


def why_empty(record: Record) -> str:
    """Why a record has no figures: who was wrong, or else who could not run."""
    reasons = record["failures"] or record["skipped"]
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


def _checks(content: dict[str, Any]) -> list[str]:
    """How many checks of a run of `bench.gpu` passed, and what became of the others."""
    outcomes = content.get("checks", {})
    others = [f"- **{name}**: {outcome}" for name, outcome in outcomes.items() if outcome != "passed"]
    passed = f"Checks before the timing: {len(outcomes) - len(others)} of {len(outcomes)} passed."
    return [passed, "", *others, *[""] * bool(others)] if outcomes else []


def _losses(stem: str, content: dict[str, Any]) -> list[str]:
    """Every point at which a rival is faster than we are, then where one holds less, then what was wrong.

    Graphs are held against graphs, and what the launch plans would not choose against nothing.
    """
    slower, larger, num_pairs = [], [], 0
    for record in content["records"]:
        providers = record["providers"]
        for ours, rival in itertools.product(providers, providers):
            if (providers[ours]["role"], providers[rival]["role"]) != ("ours", "rival"):
                continue
            if ("graphed" in ours) != ("graphed" in rival):
                continue  # one with the host's time, one without
            num_pairs += 1
            time = between(record, ours, rival)
            cells = [record["case"], point_name(record), ours, rival]
            if time.value > 1:
                slower.append((time.value, [*cells, str(time)]))
            peaks = [providers[name]["bytes"].get("peak") for name in (ours, rival)]
            if None not in peaks and peaks[0] > peaks[1]:
                larger.append((peaks[0] / peaks[1], [*cells, f"{peaks[0] / peaks[1]:.2f}"]))
    lines = []
    for losses, what, column in ((slower, "slower", "our time over its"), (larger, "larger", "our peak over its")):
        where = f"On {content['machine']['device']}, in `{stem}`,"
        lines += [f"{where} we are {what} than a rival in {len(losses)} of {num_pairs} comparisons.", ""]
        if losses:
            rows = [cells for _, cells in sorted(losses, reverse=True)]
            lines += [*table(["case", "point", "ours", "rival", column], rows, "llllr"), ""]
    failed = [(record, *failure) for record in content["records"] for failure in record["failures"].items()]
    lines += [f"- **Wrong**, so not timed: {r['case']} {point_name(r)}, {name}: {why}" for r, name, why in failed]
    return lines + [""] * bool(failed)


def point_table(record: Record) -> list[str]:
    """One point: a row for each provider, in the case's order."""
    title = f"### {record['case']}: {point_name(record)}"
    if not record["providers"]:
        return [title, "", f"No figures: {why_empty(record)}.", ""]
    columns = memory_columns(record)
    clips = record["point"].get("clips")  # of one time, where a case has many
    heads = ["", "ms", "20 to 80 %", f"over {record['baseline']}", *["clips/s"] * bool(clips)]
    heads += [f"{name}, MiB" for name in columns]
    rows = []
    for name, provider in record["providers"].items():
        low, median, high = np.quantile(provider["ms"], (0.2, 0.5, 0.8))
        label = {"ours": f"**{name}**", "floor": f"*{name}* (floor)"}.get(provider["role"], name)
        memory = [f"{provider['bytes'][c] / MIB:,.1f}" if c in provider["bytes"] else "" for c in columns]
        rate = [f"{1e3 * clips / median:.1f}"] if clips else []
        rows.append([label, f"{median:.2f}", f"{low:.2f} to {high:.2f}", str(between(record, name)), *rate, *memory])
    rounds = len(record["providers"][record["baseline"]]["ms"])
    skipped = "".join(f" Without {name}: {reason}." for name, reason in record["skipped"].items())
    lines = table(heads, rows, "l" + "r" * (len(heads) - 1))
    return [title, "", *lines, "", f"`{record['command']}`: {rounds} interleaved rounds.{skipped}", ""]


def _csv_rows(content: dict[str, Any]) -> Iterator[list[Any]]:
    """Header, then one row for each provider of each record."""
    columns = list(dict.fromkeys(name for record in content["records"] for name in memory_columns(record)))
    yield ["case", "point", "provider", "role", "ms", "ms_20", "ms_80", "baseline", "ratio", "low", "high", *columns]
    for record in content["records"]:
        for name, provider in record["providers"].items():
            quantiles = np.quantile(provider["ms"], (0.5, 0.2, 0.8)).round(5).tolist()
            ratios = ["" if math.isnan(value) else round(value, 4) for value in between(record, name)]
            memory = [provider["bytes"].get(column, "") for column in columns]
            row = [record["case"], point_name(record), name, provider["role"]]
            yield [*row, *quantiles, record["baseline"], *ratios, *memory]
