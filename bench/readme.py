"""The README's tables, out of committed result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report import between, to_baseline
from bench.results import FOLDER, ROOT, device_label
from fe_adapter._io import read_json

README = ROOT / "README.md"
MIB = 2**20


def updated(readme: str, folder: Path = FOLDER) -> str:
    """``readme`` with the tables between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew from what ``folder`` holds.

    Raises:
        ValueError: the README lacks one of the marks.
    """
    for file, tables in (
        ("demo-cpu.json", {"demo": _demo_table}),
        ("suite-cpu.json", {"layer": _layer_table, "step": _step_table}),
    ):
        if not (folder / file).exists():
            continue
        content = read_json(folder / file)
        for name, table in tables.items():
            start, end = readme.index(f"<!-- {name} -->\n"), readme.index(f"<!-- /{name} -->")
            readme = f"{readme[:start]}<!-- {name} -->\n{table(content)}{readme[end:]}"
    return readme


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
    records = [r for r in content["records"] if r["case"] == "step" and r["providers"]]
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


def _layer_table(content: dict[str, Any]) -> str:
    """The points that differ in R alone, forward and backward."""
    records = [
        r for r in content["records"] if r["case"] == "layer" and r["providers"] and r["point"]["pass"] == "both"
    ]
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


def _rounds(records: list[dict[str, Any]]) -> str:
    counts = sorted({len(record["providers"][record["baseline"]]["ms"]) for record in records})
    return f"median of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} interleaved rounds"
