"""Benchmarks, run from a checkout: ``python -m bench suite --quick``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.cases import get_cases
from bench.measure.results import FOLDER, ROOT, Results, environment, is_suite
from bench.report import compare as comparison
from bench.report import readme as readme_tables
from bench.report import report as reports
from bench.suite import run as suites
from fe_adapter.environment import machine
from fe_adapter.errors import InputError
from fe_adapter.files import read_json, write_json

app = typer.Typer(help=__doc__, no_args_is_help=True)
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, in seconds: shows that everything runs.")]
Only = Annotated[str | None, typer.Option("--point", help="Only points with this in their name.")]
Provider = Annotated[
    list[str] | None, typer.Option(help="Only this one, beside the baseline; may be repeated. Not with --out.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what the file has already, and go on.")]
Out = Annotated[Path | None, typer.Option(help="JSON file of the results, whole after every point.")]


@app.callback()
def main() -> None:
    """Benchmarks of fe-adapter. Every figure is a ratio measured in one run against a named baseline."""


@app.command()
def suite(
    quick: Quick = False, point: Only = None, threads: Threads = 2, resume: Resume = False, out: Out = None
) -> None:
    """Every case, in turns: what `python -m bench report` makes its report of.

    Example: python -m bench suite --out results.json --resume
    """
    _measure(list(get_cases()), quick, point, threads, resume, out)


def _add_case(name: str, title: str) -> None:
    @app.command(name, help=f"{title}\n\nExample: python -m bench {name} --quick")
    def case(
        quick: Quick = False,
        point: Only = None,
        provider: Provider = None,
        threads: Threads = 2,
        resume: Resume = False,
        out: Out = None,
    ) -> None:
        if provider and out is not None:
            raise InputError("a result file holds every provider of a point; leave out --provider or --out")
        _measure([name], quick, point, threads, resume, out, provider or ())


for _name, _case in get_cases().items():
    _add_case(_name, (inspect.getdoc(_case) or "").splitlines()[0])


def _measure(
    names: list[str],
    quick: bool,
    point: str | None,
    threads: int,
    resume: bool,
    out: Path | None,
    only: Sequence[str] = (),
) -> None:
    torch.set_num_threads(threads)
    if resume and out is None:
        raise InputError("--resume goes on with the file of --out; name it")
    results, console = Results(out, resume, quick), Console(width=140)
    for record in suites.run(results, names, quick, point, only):
        _show(record, console)
    if not results.content["planned"]:
        raise InputError(f"no point of {', '.join(names)} has {point!r} in its name")
    if any(record["failures"] for record in results.content["records"]):
        raise typer.Exit(1)


def _show(record: dict[str, Any], console: Console) -> None:
    """One point on the screen."""
    title = f"{record['case']} {reports.point_name(record)} ({record['seconds']:.0f} s)"
    if not record["providers"]:
        console.print(f"[red]no figures[/] of {title}: {reports.why_empty(record)}")
        return
    columns = list(dict.fromkeys(column for provider in record["providers"].values() for column in provider["bytes"]))
    table = Table("", "median ms", f"over {record['baseline']}", *(f"{c}, MiB" for c in columns), title=title)
    for name, provider in record["providers"].items():
        memory = (provider["bytes"].get(column) for column in columns)
        cells = ["" if m is None else f"{m / 2**20:,.1f}" for m in memory]
        table.add_row(name, f"{np.median(provider['ms']):.2f}", str(reports.to_baseline(record, name)), *cells)
    console.print(table)
    for name, reason in record["skipped"].items():
        console.print(f"  without {name}: {reason}")


@app.command()
def report() -> None:
    """Make bench/results/REPORT.md, its plots and the README's tables out of the result files.

    Example: python -m bench report
    """
    reports.write()
    for page in readme_tables.pages():
        path = ROOT / page
        path.write_text(readme_tables.updated(path.read_text(), page))


@app.command()
def plans() -> None:
    """What `fe-adapter plan` picks for ViT-B and ViT-L on cards of several sizes, into bench/results/plans.json.

    Example: python -m bench plans
    """
    from bench.suite import budgets as planned

    records = list(track(planned.plans(), "planning", total=len(planned.VITS) * len(planned.NUM_FRAMES)))
    write_json(FOLDER / "plans.json", {"machine": machine(), "predicted": True, "plans": records})


@app.command()
def gelu2bit() -> None:
    """Derive the constants of memory policy gelu2bit anew, and measure how far its gradient is from the exact one.

    Example: python -m bench gelu2bit
    """
    from bench.tuning import gelu2bit as approximation

    for row in approximation.report():
        print("  ".join(f"{name}: {value}" for name, value in row.items()))


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="A result file, or a commit.")],
    new: Annotated[str, typer.Argument(help="Another of the same kind.")],
    case: Annotated[str, typer.Option(help="What to measure of two commits.")] = "layer",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of two commits.")] = 15,
    allowed: Annotated[float, typer.Option(help="Ratio up to which a slow-down passes.")] = 1.05,
    quick: Quick = False,
    threads: Threads = 2,
) -> None:
    """New time over old, with a 95 % interval; exits with 1 where even its low end is above what is allowed.

    It does so, too, where a provider of the old file is not in the new one. Less than five rounds have no interval.

    Two files were measured at different times, so their ratio has the machine's drift in it; of two commits, each runs
    in a process of its own, and the two take turns.

    Example: python -m bench compare HEAD~1 HEAD --case layer --quick
    """
    torch.set_num_threads(threads)
    if case not in get_cases():
        raise InputError(f"case {case!r} is none of {', '.join(get_cases())}")
    if Path(old).is_file() and Path(new).is_file():
        comparisons, missing = comparison.compare_files(Path(old), Path(new))
    else:
        comparisons, missing = list(comparison.compare_commits(old, new, case, rounds, quick)), []
    table = Table("case", "point", "provider", "new over old, 95 %", "", title=f"{new} over {old}")
    for c in comparisons:
        table.add_row(c.case, c.point, c.provider, str(c.ratio), "slower" * c.is_slower(allowed))
    console = Console(width=140)
    console.print(table)
    for name in missing:
        console.print(f"not in {new}, or wrong there: {name}")
    if missing or any(c.is_slower(allowed) for c in comparisons):
        raise typer.Exit(1)


@app.command("compile")
def compile_command(
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, gfx942, …; default all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two adapters only: bf16, static and dynamic.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write every launch to this CSV file.")] = None,
) -> None:
    """Compile every kernel for GPUs that are not there: registers, spills, shared memory, tensor cores.

    Exits with 1 if a launch spills, needs too much shared memory, has no tensor-core product or lacks a barrier.

    Example: python -m bench compile --target sm_90 --quick
    """
    import triton

    from bench.proof import launches as cases  # not before it is needed: it imports Triton
    from bench.proof.ahead import ARCHS

    targets = tuple(target or ARCHS)
    for name in targets:
        if name not in ARCHS:
            raise typer.BadParameter(f"{name} is none of {', '.join(ARCHS)}")
    compiled = cases.compile_cases(cases.FAST, targets) if quick else cases.compile_all(targets, jobs)
    compiled = compiled if out is None else cases.written(compiled, out)
    reports = list(track(compiled, "compiling", transient=True))
    if not reports:
        raise InputError("--quick has adapters in bf16 alone, in which sm_75 cannot compute; leave it out")
    figures = ("regs", "spill", "smem KiB", "blocks/SM", "products")
    table = Table("target", "kernel", "design", "adapter", *figures, "problems", title=f"Triton {triton.__version__}")
    for report in reports:
        numbers = (report.registers, report.spilled, report.smem // 1024, report.blocks_per_sm, report.tensor_core)
        names = (report.target, report.kernel, report.design, report.case)
        table.add_row(*names, *map(str, numbers), "; ".join(cases.problems(report)) or "none")
    console = Console(width=200)
    console.print(table)
    if not quick:
        table = Table("R", "D", *targets, title="what the plans choose in bf16")
        for R, D, variants in cases.chosen(targets):
            table.add_row(str(R), str(D), *variants)
        console.print(table)
        cost()
    if any(cases.problems(report) for report in reports):
        raise typer.Exit(1)


@app.command()
def cost() -> None:
    """Predicted times of every design on named cards, from bytes and FLOPs. Predictions, not measurements.

    Example: python -m bench cost
    """
    from bench.tuning import cost as model

    names = ("gemm", "fused", "resident", "tail")
    for title, options in (("static", {}), ("dynamic", {"dynamic": True}), ("static, fp32 stream", {"stream": 4})):
        table = Table("R", "card", *names, "fastest", "its bound", "of roofline")
        for R in model.BOTTLENECKS:
            for name, card in model.CARDS.items():
                shape = model.Shape(R=R, **options)
                times = {d: [1e6 * t for t in model.predicted(d, shape, card)] for d in model.designs(shape, card)}
                shown = [f"{times[d][0]:.0f} + {times[d][1]:.0f}" if d in times else "" for d in names]
                best = model.faster(shape, card)
                bound = max(model.launches(best, shape, card)[0], key=lambda launch: launch.seconds(card)).bound(card)
                share = f"{model.roofline_share(best, shape, card):.0%}"
                table.add_row(str(R), name, *shown, best, bound, share)
        table.title = f"PREDICTED µs, forward + backward: bf16, {title}, B=8 T=8 N=196 D=768"
        Console(width=120).print(table)


@app.command()
def kernels(
    bottleneck: Annotated[list[int] | None, typer.Option(min=1, help="R; may be repeated; default 384 and 64.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file of the figures.")] = None,
) -> None:
    """On a GPU: what each kernel of a layer's forward and backward takes, design by design, and what the host takes.

    Example: python -m bench kernels --bottleneck 384
    """
    if not torch.cuda.is_available():
        raise InputError("there is no GPU here; `python -m bench cost` predicts")
    from bench.tuning import profile as profiler  # not before it is needed: it imports Triton

    records = []
    for record in profiler.records(tuple(bottleneck or (384, 64))):
        records.append(record)
        title = f"R={record['R']} dilation={record['dilation']} {record['design']}: {profiler.summary(record)}"
        table = Table("kernel", "launches", "µs", title=title)
        for row in record.get("kernels", ()):
            table.add_row(row["name"][:80], f"{row['launches']:g}", f"{row['us']:.1f}")
        Console(width=120).print(table)
        if out is not None:
            write_json(out, {"machine": environment(), "shape": profiler.SHAPE, "layers": records})


@app.command()
def tiles(
    bottleneck: Annotated[int, typer.Option(min=1, help="R.")] = 384,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="A dynamic dilation.")] = False,
) -> None:
    """On a GPU: what other tiles than the launch plans' would take, one change at a time. Compiles for a minute or two.

    Example: python -m bench tiles --bottleneck 64
    """
    if not torch.cuda.is_available():
        raise InputError("there is no GPU here; `python -m bench compile` says what fits one")
    from bench.tuning.tiles import sweep  # not before it is needed: it imports Triton

    if bottleneck % 16:
        raise InputError(f"R={bottleneck} is no multiple of 16: such rows have one plan")

    table = Table("plan", "kernels, µs", "all, µs", title=f"R={bottleneck} {'dynamic' if dynamic else 'static'}")
    for row in track(sweep(bottleneck, "dynamic" if dynamic else 1), "timing", transient=True):
        table.add_row(*row)
    Console(width=160).print(table)


@app.command()
def choice(
    results: Annotated[Path | None, typer.Argument(help="What was measured on a GPU; without it, predictions.")] = None,
) -> None:
    """Make the rows of the launch plans' table of designs anew: which is the fastest up to which R.

    They go into CHOICE in kernels/plans.py, under the card's compute capability.

    Example: python -m bench choice
    """
    from bench.tuning import choice as choices  # not before it is needed: it imports Triton

    if results is None:
        for name, rows, now in choices.predicted():
            print(f"{name}, predicted: {rows}; the table: {now}")
        return
    content = read_json(results)
    rows = choices.measured(content) if is_suite(content) else {}
    if not rows:
        raise InputError(
            f"{results} has no times of several designs as graphs: it takes a run of `make gpu` of this version"
        )
    print(f"{content['machine']['device']}, measured: {rows}")
