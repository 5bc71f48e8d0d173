"""Benchmarks, run from a checkout: ``python -m bench layer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
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


@app.command()
def readme() -> None:
    """Put the tables of bench/results/ into the README.

    Example: python -m bench readme
    """
    path = readme_tables.ROOT / "README.md"
    path.write_text(readme_tables.updated(path.read_text()))


if __name__ == "__main__":
    app()
