"""The README's tables, out of committed result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def updated(readme: str) -> str:
    """``readme`` with the tables between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew."""
    for name, table in (("demo", _demo_table), ("layer", _layer_table)):
        before, _, rest = readme.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        content = json.loads((RESULTS / f"{name}-cpu.json").read_text())
        readme = f"{before}<!-- {name} -->\n{table(content)}<!-- /{name} -->{after}"
    return readme


def _demo_table(content: dict[str, Any]) -> str:
    lines = ["| | test UAR | test WAR | trainable | ms/step | peak MiB |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {row['name']} | {row['uar']:.1%} | {row['war']:.1%} | {row['num_trainable']:,} "
        f"| {row['ms_per_step']:.0f} | {row['peak_bytes'] / 2**20:.1f} |"
        for row in content["rows"]
    ]
    return "\n".join([*lines, "", f"{_machine(content)}; {content['seconds']:.0f} s in all.", ""])


def _layer_table(content: dict[str, Any]) -> str:
    shape = ", ".join(f"{key}={value}" for key, value in content["shape"].items() if key != "dtype")
    lines = [
        "| R | dilation | speed-up over ST-Adapter | time over six products | saved for backward, MiB | peak, MiB |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in content["rows"]:
        saved, peak = ({k: v / 2**20 for k, v in row[key].items()} for key in ("saved_bytes", "peak_bytes"))
        for kind in ("static", "dynamic"):
            lines.append(
                f"| {row['R']} | {kind} | {row[f'{kind}_speedup_over_st_adapter']:.2f}× "
                f"| {row[f'{kind}_over_six_products']:.2f}× | {saved[kind]:.1f} (ST-Adapter {saved['st-adapter']:.1f}) "
                f"| {peak[kind]:.1f} (ST-Adapter {peak['st-adapter']:.1f}) |"
            )
    rounds = f"median of {content['rounds']} interleaved rounds"
    return "\n".join([*lines, "", f"{_machine(content)}; {shape}, {content['shape']['dtype']}; {rounds}.", ""])


def _machine(content: dict[str, Any]) -> str:
    machine = content["machine"]
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}"
