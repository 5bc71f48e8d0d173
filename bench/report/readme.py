"""The tables of the README and of docs/memory.md, out of committed result files."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure.results import FOLDER, MIB, Record
from bench.report.compare import between
from bench.report.markdown import table
from fe_adapter.files import read_json
from fe_adapter.memory.plan import FULL_TUNING

NOTHING = "Not measured yet.\n"


def pages(folder: Path = FOLDER) -> dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]]:
    """The pages with tables in them: for each table the result file it is made of, and how."""
    return {
        "README.md": {
            "gpu": (_newest_gpu(folder), _gpu_table),
            "demo": ("demo-cpu.json", _demo_table),
            "step": ("suite-cpu.json", _step_table),
        },
        "docs/benchmarks.md": {
            "layer": ("suite-cpu.json", _layer_table),
        },
        "docs/kernels.md": {
            "host": ("host.json", _host_table),
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
    for name, (file, make) in pages(folder)[page].items():
        if (folder / file).is_file():
            start, end = text.index(f"<!-- {name} -->\n"), text.index(f"<!-- /{name} -->")
            text = f"{text[:start]}<!-- {name} -->\n{make(read_json(folder / file))}{text[end:]}"
    return text


def _newest_gpu(folder: Path) -> str:
    """The name of the last result file of `bench.gpu`; "" where there is none."""
    found = {path.name: content for path in folder.glob("*.json") if "checks" in (content := read_json(path))}
    return max(found, key=lambda name: found[name]["machine"]["date"], default="")


def _gpu_table(content: dict[str, Any]) -> str:
    """A step and a layer, launch by launch and as a CUDA graph: time, over the baseline's likewise, and peak."""
    rows = []
    for record in [*_with(content, "step"), *sorted(_with(content, "layer"), key=lambda r: r["point"]["R"])]:
        point, providers, baseline = record["point"], record["providers"], record["baseline"]
        if point.get("pass", "both") != "both":
            continue
        if record["case"] == "layer":
            where = f"layer, {point['B']} × {point['T']}, R={point['R']}"
        else:
            where = f"step, {point['vit']}, {point['B']} × {point['T']}"
        for name in ("full fine-tuning", "st-adapter", "LoRA", "attention probe", "static", "dynamic"):
            if name not in providers:
                continue
            cells = []
            for own, other in ((name, baseline), (f"{name} graphed", f"{baseline} graphed")):
                if own not in providers:
                    cells.append("not measured")
                    continue
                over = f" ({between(record, own, other).value:.2f}×)" if other in providers and own != other else ""
                cells.append(f"{statistics.median(providers[own]['ms']):.2f}{over}")
            peaks = [providers[own]["bytes"].get("peak") for own in (name, f"{name} graphed") if own in providers]
            memory = " / ".join(f"{peak / MIB:,.0f}" for peak in peaks if peak is not None)
            label = f"**{name}**" if providers[name]["role"] == "ours" else name
            rows.append([where, label, *cells, memory])
            where = ""
    if not rows:
        return NOTHING
    heads = ["bf16", "", "eager, ms", "as a CUDA graph, ms", "peak, MiB"]
    machine = content["machine"]
    without = "" if any(r["case"] == "step" for r in content["records"]) else "; no training step in this run"
    conditions = f"{machine['device']}, torch {machine['torch']}, {machine['date']}, {_commit(content)}{without}."
    return _under(table(heads, rows, "llrrr"), conditions)


def _host_table(content: dict[str, Any]) -> str:
    """Launches, waits and host time beside the baseline's, on a CUDA that is not there."""
    rows, conditions = [], []
    for name in ("layer", "step", "fit"):
        if name not in content["cases"]:
            continue
        case = content["cases"][name]
        device, date = (case["machine"][key] for key in ("device", "date"))
        conditions.append(f"{name}: {case['rounds']} rounds, {device}, {date}, {_commit(case)}")
        for title, contenders in case["tables"].items():
            for contender, found in contenders.items():
                ratio = f"{found['ratio']:.2f}" if "ratio" in found else ""
                rows.append([title, contender, f"{found['launches']:.0f}", f"{found['waits']:.0f}", ratio])
                title = ""
    heads = ["", "", "launches", "waits", "host time over ST-Adapter's"]
    measured = f"Measured on {content['measured on']}. " + "; ".join(conditions) + "."
    return _under(table(heads, rows, "llrrr"), measured) if rows else NOTHING


def _demo_table(content: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            *(f"{row[recall]:.1%}" for recall in ("uar", "war")),
            f"{row['num_trainable']:,}",
            f"{row['ms_per_step']:.0f}",
            f"{row['peak_bytes'] / MIB:.1f}",
        )
        for row in content["rows"]
    ]
    lines = table(["", "test UAR", "test WAR", "trainable", "ms/step", "peak MiB"], rows, "lrrrrr")
    return _under(lines, f"{_device(content)}; {content['seconds']:.0f} s in all.")


def _layer_table(content: dict[str, Any]) -> str:
    """The points that differ in R alone, forward and backward."""
    records = [r for r in _with(content, "layer", "static", "dynamic", "six products") if r["point"]["pass"] == "both"]
    if not records:
        return NOTHING
    first = _without_width(records[0])
    records = [record for record in records if _without_width(record) == first]
    rows = []
    for record in records:
        theirs = record["providers"]["st-adapter"]["bytes"]
        for kind in ("static", "dynamic"):
            ours = record["providers"][kind]["bytes"]
            times = between(record, "st-adapter", kind), between(record, kind, "six products")
            memory = [f"{ours[m] / MIB:.1f} (ST-Adapter {theirs[m] / MIB:.1f})" for m in ("saved", "peak")]
            rows.append([str(record["point"]["R"]), kind, *(f"{time.value:.2f}×" for time in times), *memory])
    heads = ["R", "dilation", "speed-up over ST-Adapter", "time over six products", "saved for backward, MiB"]
    shape = ", ".join(f"{name}={value}" for name, value in first.items() if name not in ("pass", "dtype"))
    conditions = f"{_device(content)}; {shape}, P=1, {first['dtype']}; {_rounds(records)}."
    return _under(table([*heads, "peak, MiB"], rows, "rlrrrr"), conditions)


def _step_table(content: dict[str, Any]) -> str:
    """Time and peak of a step over full fine-tuning's."""
    records = _with(content, "step")
    if not records:
        return NOTHING
    shown = ("static", "dynamic", "st-adapter", "LoRA", "linear probe")
    rows = []
    for record in records:
        point, providers = record["point"], record["providers"]
        peaks = {name: figures["bytes"]["peak"] for name, figures in providers.items()}
        ratios = [
            f"{between(record, name).value:.2f}, {peaks[name] / peaks[record['baseline']]:.2f}" if name in peaks else ""
            for name in shown
        ]
        rows.append([point["vit"], f"{point['B']} × {point['T']}", *ratios])
    lines = table(["", "clips × frames", *(f"{name}: time, peak" for name in shown)], rows, "lr" + "r" * len(shown))
    return _under(lines, f"{_device(content)}; {_rounds(records)}.")


def _ladder_table(content: dict[str, Any]) -> str:
    """Peak as predicted and as measured, and the time over the fastest of ours, rung by rung."""
    records = _with(content, "ladder", "none", FULL_TUNING)
    if not records:
        return NOTHING
    rows = []
    for record in records:
        point, full = record["point"], record["providers"][FULL_TUNING]["bytes"]["peak"]
        for name, figures in record["providers"].items():
            found, time = figures["bytes"], between(record, name)
            rows.append([
                f"{point['vit']}, {point['B']} × {point['T']}",
                name if name == FULL_TUNING else f"`{name}`",
                *(f"{found[peak] / MIB:,.0f}" for peak in ("estimated peak", "peak")),
                f"{found['peak'] / full:.2f}",
                "" if math.isnan(time.low) else f"{time.value:.2f}× ({time.low:.2f} to {time.high:.2f})",
                f"`--point {point['vit']} --provider {shlex.quote(name)}`",
            ])  # fmt: skip
    heads = ["", "policy", "predicted peak, MiB", "measured", "of full fine-tuning", "step over `none`"]
    conditions = "fp32, static dilation; times are medians of 15 interleaved rounds with 95 % intervals."
    return _under(table([*heads, "`python -m bench ladder`"], rows, "llrrrrl"), f"{_device(content)}; {conditions}")


def _plans_table(content: dict[str, Any]) -> str:
    """The policy that is picked for each size of card, by net and number of frames."""

    def shown(picked: dict[str, Any] | None) -> str:
        if picked is None:
            return "smaller batches"
        policy = picked["policy"].removeprefix("bf16+")
        graph = "" if picked["is_captured"] else ", not captured"
        return f"`{policy}`{graph} {picked['peak'] / 2**30:.1f} GB, {picked['relative_cost']:.2f}×"

    budgets = list(content["plans"][0]["picked"])
    rows = [
        [f"{record['vit']}, {record['B']} × {record['T']}", f"{record['full fine-tuning in bf16'] / 2**30:.1f} GB"]
        + [shown(picked) for picked in record["picked"].values()]
        for record in content["plans"]
    ]
    heads = ["", "full, all in bf16", *(f"{budget} GB" for budget in budgets)]
    return _under(table(heads, rows, "lr" + "l" * len(budgets)))


def _under(lines: list[str], conditions: str = "") -> str:
    """A table, and under it what it was measured on."""
    return "\n".join([*lines, "", *([conditions, ""] if conditions else [])])


def _device(content: dict[str, Any]) -> str:
    machine = content["machine"]
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}"


def _commit(content: dict[str, Any]) -> str:
    return f"commit {content['machine']['commit'][:7]}"


def _with(content: dict[str, Any], case: str, *providers: str) -> list[Record]:
    """The points of ``case`` that have figures, those of ``providers`` among them."""
    of_case = [r for r in content["records"] if r["case"] == case and r["providers"]]
    return [record for record in of_case if record["providers"].keys() >= set(providers)]


def _without_width(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record["point"].items() if name != "R"}


def _rounds(records: list[Record]) -> str:
    counts = sorted({len(record["providers"][record["baseline"]]["ms"]) for record in records})
    return f"median of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} interleaved rounds"
