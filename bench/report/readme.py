"""The tables of the README and of docs/memory.md, out of committed result files."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure.results import FOLDER, device_label
from bench.report.report import between, to_baseline
from fe_adapter.files import read_json
from fe_adapter.memory.plan import FULL_TUNING

MIB = 2**20
NOTHING = "Not measured yet.\n"


def pages() -> dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]]:
    """The pages with tables in them: for each table the result file it is made of, and how."""
    return {
        "README.md": {
            "demo": ("demo-cpu.json", _demo_table),
            "layer": ("suite-cpu.json", _layer_table),
            "step": ("suite-cpu.json", _step_table),
        },
        "docs/memory.md": {
            "ladder": ("suite-cpu.json", _ladder_table),
            "plans": ("plans.json", _plans_table),
        },
    }


def updated(text: str, page: str = "README.md", folder: Path = FOLDER) -> str:
    """``text``, that of ``page``, with the tables between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew.

    Raises:
        ValueError: the page lacks one of the marks.
    """
    for name, (file, table) in pages()[page].items():
        if (folder / file).exists():
            start, end = text.index(f"<!-- {name} -->\n"), text.index(f"<!-- /{name} -->")
            text = f"{text[:start]}<!-- {name} -->\n{table(read_json(folder / file))}{text[end:]}"
    return text


def _demo_table(content: dict[str, Any]) -> str:
    lines = ["| | test UAR | test WAR | trainable | ms/step | peak MiB |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {row['name']} | {row['uar']:.1%} | {row['war']:.1%} | {row['num_trainable']:,} "
        f"| {row['ms_per_step']:.0f} | {row['peak_bytes'] / MIB:.1f} |"
        for row in content["rows"]
    ]
    return "\n".join([*lines, "", f"{device_label(content)}; {content['seconds']:.0f} s in all.", ""])


def _step_table(content: dict[str, Any]) -> str:
    """Time and peak of a step over full fine-tuning's."""
    records = _with(content, "step")
    if not records:
        return NOTHING
    shown = ("static", "dynamic", "st-adapter", "LoRA", "linear probe")
    lines = [
        "| | clips × frames | " + " | ".join(f"{name}: time, peak" for name in shown) + " |",
        "|---|--:|" + "--:|" * len(shown),
    ]
    for record in records:
        full, point = record["providers"][record["baseline"]], record["point"]
        cells = []
        for name in shown:
            provider = record["providers"].get(name)
            cells.append(
                ""
                if provider is None
                else f"{to_baseline(record, name).value:.2f}, {provider['bytes']['peak'] / full['bytes']['peak']:.2f}"
            )
        lines.append(f"| {point['vit']} | {point['B']} × {point['T']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{device_label(content)}; {_rounds(records)}.", ""])


def _ladder_table(content: dict[str, Any]) -> str:
    """Peak as predicted and as measured, and the time over the fastest of ours, rung by rung."""
    records = _with(content, "ladder", "none", FULL_TUNING)
    if not records:
        return NOTHING
    lines = ["| | policy | predicted peak, MiB | measured | of full fine-tuning | step over `none` | "
             "`python -m bench ladder` |",
             "|---|---|--:|--:|--:|--:|---|"]  # fmt: skip
    for record in records:
        point, full = record["point"], record["providers"][FULL_TUNING]["bytes"]["peak"]
        for name, provider in record["providers"].items():
            found, time = provider["bytes"], to_baseline(record, name)
            cells = [
                f"{point['vit']}, {point['B']} × {point['T']}",
                name if name == FULL_TUNING else f"`{name}`",
            ]
            cells += [
                f"{found['estimated peak'] / MIB:,.0f}",
                f"{found['peak'] / MIB:,.0f}",
                f"{found['peak'] / full:.2f}",
            ]
            cells += [
                "" if math.isnan(time.low) else f"{time.value:.2f}× ({time.low:.2f} to {time.high:.2f})",
                f"`--point {point['vit']} --provider {shlex.quote(name)}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    conditions = "fp32, static dilation; times are medians of 15 interleaved rounds with 95 % intervals"
    return "\n".join([*lines, "", f"{device_label(content)}; {conditions}.", ""])


def _plans_table(content: dict[str, Any]) -> str:
    """For each net and number of frames, the policy that is picked for each size of card."""
    budgets = list(content["plans"][0]["picked"])
    lines = [
        "| | full, all in bf16 | " + " | ".join(f"{budget} GB" for budget in budgets) + " |",
        "|---|--:|" + "---|" * len(budgets),
    ]
    for record in content["plans"]:
        cells = [
            f"{record['vit']}, {record['B']} × {record['T']}",
            f"{record['full fine-tuning in bf16'] / 2**30:.1f} GB",
        ]
        for picked in record["picked"].values():
            if picked is None:
                cells.append("smaller batches")
                continue
            policy, cost = picked["policy"].removeprefix("bf16+"), picked["relative_cost"]
            cells.append(f"`{policy}` {picked['peak'] / 2**30:.1f} GB, {cost:.2f}×")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _layer_table(content: dict[str, Any]) -> str:
    """The points that differ in R alone, forward and backward."""
    records = [r for r in _with(content, "layer", "static", "dynamic", "six products") if r["point"]["pass"] == "both"]
    if not records:
        return NOTHING
    first = {name: value for name, value in records[0]["point"].items() if name != "R"}
    records = [r for r in records if {name: value for name, value in r["point"].items() if name != "R"} == first]
    lines = [
        "| R | dilation | speed-up over ST-Adapter | time over six products | saved for backward, MiB | peak, MiB |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for record in records:
        theirs = record["providers"]["st-adapter"]["bytes"]
        for kind in ("static", "dynamic"):
            ours = record["providers"][kind]["bytes"]
            memory = [f"{ours[m] / MIB:.1f} (ST-Adapter {theirs[m] / MIB:.1f})" for m in ("saved", "peak")]
            speedup, floor = between(record, "st-adapter", kind).value, between(record, kind, "six products").value
            lines.append(f"| {record['point']['R']} | {kind} | {speedup:.2f}× | {floor:.2f}× | {' | '.join(memory)} |")
    shape = ", ".join(f"{name}={value}" for name, value in first.items() if name not in ("pass", "dtype"))
    conditions = f"{shape}, P=1, {first['dtype']}; {_rounds(records)}"
    return "\n".join([*lines, "", f"{device_label(content)}; {conditions}.", ""])


def _with(content: dict[str, Any], case: str, *providers: str) -> list[dict[str, Any]]:
    """The points of ``case`` that have figures, those of ``providers`` among them."""
    of_case = [r for r in content["records"] if r["case"] == case and r["providers"]]
    return [record for record in of_case if record["providers"].keys() >= set(providers)]


def _rounds(records: list[dict[str, Any]]) -> str:
    counts = sorted({len(record["providers"][record["baseline"]]["ms"]) for record in records})
    return f"median of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} interleaved rounds"
