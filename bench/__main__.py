"""Benchmarks, run from a checkout: ``python -m bench layer``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import layer as layer_case
from bench import readme as readme_tables

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Benchmarks of fe-adapter. Every figure is a ratio measured in one run against a named baseline."""


@app.command()
def layer(
    bottleneck: Annotated[list[int], typer.Option(help="Bottleneck widths R.")] = [64, 384],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Clips B.")] = 2,
    rounds: Annotated[int, typer.Option(help="Timed rounds, each contender once a round.")] = 30,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")] = None,
) -> None:
    """One layer, forward + backward: ours, ST-Adapter's formulation, and the floor of the six bare products.

    Example: python -m bench layer --bottleneck 64 --rounds 20
    """
    torch.set_num_threads(threads)
    results = layer_case.run(tuple(bottleneck), batch_size, rounds)
    console = Console()
    for row in results["rows"]:
        table = Table(title=f"R={row['R']} on {results['machine']['device']}, {threads} threads")
        for column in ("", "median ms", "saved MiB", "peak MiB"):
            table.add_column(column, justify="left" if column == "" else "right")
        for name, milliseconds in row["median_ms"].items():
            memory = (row[key].get(name) for key in ("saved_bytes", "peak_bytes"))
            table.add_row(name, f"{milliseconds:.1f}", *("" if m is None else f"{m / 2**20:.1f}" for m in memory))
        console.print(table)
        for key in (key for key in row if "_over_" in key):
            console.print(f"  {key.replace('_', ' ')}: {row[key]:.2f}x")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")


@app.command("compile")
def compile_command(
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, gfx942, …; default all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two adapters only: bf16, static and dynamic.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write every launch to this CSV file.")] = None,
) -> None:
    """Compile every kernel for GPUs that are not there: registers, spills, shared memory, tensor cores.

    Exits with 1 if a launch spills, needs too much shared memory, has no tensor-core product or lacks a barrier.

    Example: python -m bench compile --target sm_90 --quick
    """
    import triton

    from bench import compile as cases  # not before it is needed: it imports Triton
    from bench.ahead import ARCHS

    targets = tuple(target or ARCHS)
    for name in targets:
        if name not in ARCHS:
            raise typer.BadParameter(f"{name} is none of {', '.join(ARCHS)}")
    compiled = cases.compile_cases(cases.FAST if quick else cases.CASES, targets)
    reports = list(track(compiled, "compiling", transient=True))
    columns = ("target", "kernel", "adapter", "regs", "spill", "smem KiB", "blocks/SM", "products", "problems")
    table = Table(*columns, title=f"Triton {triton.__version__}")
    for report in reports:
        numbers = (report.registers, report.spilled, report.smem // 1024, report.blocks_per_sm, report.tensor_core)
        table.add_row(
            report.target, report.kernel, report.case, *map(str, numbers), "; ".join(cases.problems(report)) or "none"
        )
    console = Console(width=200)
    console.print(table)
    if not quick:
        for R, D, variant in cases.signatures():
            console.print(f"R={R} D={D}: {variant}")
        cost()
    if out is not None:
        cases.write_csv(reports, out)
    if any(cases.problems(report) for report in reports):
        raise typer.Exit(1)


@app.command()
def cost() -> None:
    """Predicted times of both designs on named cards, from bytes and FLOPs. Predictions, not measurements.

    Example: python -m bench cost
    """
    from bench import cost as model

    table = Table("R", "card", "gemm fwd + bwd µs", "fused fwd + bwd µs", "bound of fused", "of roofline", "faster")
    for R in model.BOTTLENECKS:
        for name, card in model.CARDS.items():
            shape = model.Shape(R=R)
            times = [[1e6 * t for t in model.predicted(design, shape, card)] for design in model.DESIGNS]
            bound = model.fused_design(shape)[0][0].bound(card)
            share = f"{model.roofline_share('fused', shape, card):.0%}"
            shown = [f"{forward:.0f} + {backward:.0f}" for forward, backward in times]
            table.add_row(str(R), name, *shown, bound, share, model.faster(shape, card))
    table.title = f"PREDICTED, bf16, {dataclasses.asdict(model.Shape())} but for R"
    Console(width=120).print(table)


@app.command()
def gpu(
    out: Annotated[Path | None, typer.Option(help="JSON file; default bench/results/CARD-DATE.json.")] = None,
    seconds: Annotated[float, typer.Option(help="Start no new measurement after this time.")] = 480,
) -> None:
    """Every kernel on this machine's GPU against float64, then first times. What `make gpu` runs.

    Example: python -m bench gpu
    """
    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU here")
    from bench import gpu as gpu_case

    results = gpu_case.run(seconds)
    card = str(results["machine"]["device"]).lower().replace(" ", "-")
    path = out or readme_tables.RESULTS / f"{card}-{results['machine']['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    if results["failures"]:
        raise typer.Exit(1)


@app.command()
def readme() -> None:
    """Put the tables of bench/results/ into the README.

    Example: python -m bench readme
    """
    path = readme_tables.ROOT / "README.md"
    path.write_text(readme_tables.updated(path.read_text()))


if __name__ == "__main__":
    app()
