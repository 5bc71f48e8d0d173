"""Benchmarks, run from a checkout: ``python -m bench suite --quick``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from rich.table import Table

from bench.cases import get_cases
from bench.measure.results import FOLDER, ROOT, Results, is_suite
from bench.report import readme as tables
from bench.report import report as reports
from bench.report.compare import compare_commits, compare_files
from bench.suite.run import run
from fe_adapter.environment import machine
from fe_adapter.errors import InputError
from fe_adapter.files import read_json, write_json

# What imports Triton is imported by the commands that need it.

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


def _add_measuring(command: str, cases: list[str], title: str) -> None:
    @app.command(command, help=f"{title}\n\nExample: python -m bench {command} --quick")
    def measure(
        quick: Quick = False,
        point: Only = None,
        provider: Provider = None,
        threads: Threads = 2,
        resume: Resume = False,
        out: Out = None,
    ) -> None:
        torch.set_num_threads(threads)
        if provider and out is not None:
            raise InputError("a result file holds every provider of a point; leave out --provider or --out")
        if resume and out is None:
            raise InputError("--resume goes on with the file of --out; name it")
        results = Results(out, resume, quick)
        for record in run(results, cases, quick, point, provider or ()):
            _print(Markdown("\n".join(reports.point_table(record))))
        if not results.content["planned"]:
            raise InputError(f"no point of {', '.join(cases)} has {point!r} in its name")
        if any(record["failures"] for record in results.content["records"]):
            raise typer.Exit(1)


_add_measuring("suite", list(get_cases()), "Every case, in turns: what `python -m bench report` makes its report of.")
for _name, _case in get_cases().items():
    _add_measuring(_name, [_name], (inspect.getdoc(_case) or "").splitlines()[0])


def _print(*what: Table | Markdown | str) -> None:
    console = Console(width=200)
    for each in what:
        console.print(each)


@app.command()
def report() -> None:
    """Make bench/results/REPORT.md, its plots and the README's tables out of the result files.

    Example: python -m bench report
    """
    reports.write()
    for page in tables.pages():
        path = ROOT / page
        path.write_text(tables.updated(path.read_text(), page))


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
        comparisons, missing = compare_files(Path(old), Path(new))
    else:
        comparisons, missing = list(compare_commits(old, new, case, rounds, quick)), []
    table = Table("case", "point", "provider", "new over old, 95 %", "", title=f"{new} over {old}")
    for c in comparisons:
        table.add_row(c.case, c.point, c.provider, str(c.ratio), "slower" * c.is_slower(allowed))
    _print(table, *(f"not in {new}, or wrong there: {name}" for name in missing))
    if missing or any(c.is_slower(allowed) for c in comparisons):
        raise typer.Exit(1)


@app.command("compile")
def compile_command(
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, gfx942, …; default all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two adapters only: bf16, static and dynamic.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = 2,
    out: Annotated[Path | None, typer.Option(help="CSV file: the worst of each kernel and design by target.")] = None,
    every: Annotated[bool, typer.Option("--all", help="A row for every launch instead.")] = False,
) -> None:
    """Compile every kernel for GPUs that are not there: registers, spills, shared memory, tensor cores.

    Exits with 1 if a launch spills, needs too much shared memory, has no tensor-core product or lacks a barrier.

    Example: python -m bench compile --target sm_90 --quick
    """
    import triton

    from bench.proof import launches, summary
    from bench.proof.ahead import ARCHS

    targets = tuple(target or ARCHS)
    for name in targets:
        if name not in ARCHS:
            raise typer.BadParameter(f"{name} is none of {', '.join(ARCHS)}")
    compiled = launches.compile_cases(launches.FAST, targets) if quick else launches.compile_all(targets, jobs)
    compiled = compiled if out is None else summary.written(compiled, out, every)
    found = list(track(compiled, "compiling", transient=True))
    if not found:
        raise InputError("--quick has adapters in bf16 alone, in which sm_75 cannot compute; leave it out")
    rows = summary.every(found) if every else summary.worst(found)
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=f"Triton {triton.__version__}")
    for row in rows:
        table.add_row(*map(str, row.values()))
    _print(table)
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@app.command()
def cost() -> None:
    """Predicted times of every design on named cards, from bytes and FLOPs. Predictions, not measurements.

    Example: python -m bench cost
    """
    from bench.tuning import cost as model

    names = ("gemm", "fused", "resident", "tail")
    plain = model.Shape()
    wide, dynamic = dataclasses.replace(plain, stream=4), dataclasses.replace(plain, dynamic=True)
    for form, shape in (("static", plain), ("dynamic", dynamic), ("static, fp32 stream", wide)):
        table = Table("R", "card", *names, "fastest", "its bound", "of roofline")
        table.title = f"PREDICTED µs, forward + backward: bf16, {form}, B=8 T=8 N=196 D=768"
        for R in model.BOTTLENECKS:
            for name, card in model.CARDS.items():
                shape = dataclasses.replace(shape, R=R)
                times = {d: [1e6 * t for t in model.predicted(d, shape, card)] for d in model.designs(shape, card)}
                shown = [f"{times[d][0]:.0f} + {times[d][1]:.0f}" if d in times else "" for d in names]
                best = model.faster(shape, card)
                bound = max(model.launches(best, shape, card)[0], key=lambda launch: launch.seconds(card)).bound(card)
                share = f"{model.roofline_share(best, shape, card):.0%}"
                table.add_row(str(R), name, *shown, best, bound, share)
        _print(table)


@app.command()
def choice(
    results: Annotated[Path | None, typer.Argument(help="What was measured on a GPU; without it, predictions.")] = None,
) -> None:
    """Make the rows of the launch plans' table of designs anew: which is the fastest up to which R.

    They go into CHOICE in kernels/plans.py, under the card's compute capability.

    Example: python -m bench choice
    """
    from bench.tuning import choice as choices

    if results is None:
        for name, predicted, now in choices.predicted():
            print(f"{name}, predicted: {predicted}; the table: {now}")
        return
    content = read_json(results)
    rows = choices.measured(content) if is_suite(content) else {}
    if not rows:
        raise InputError(
            f"{results} has no times of several designs as graphs: it takes a run of `make gpu` of this version"
        )
    print(f"{content['machine']['device']}, measured: {rows}")


@app.command()
def kernels(
    bottleneck: Annotated[list[int] | None, typer.Option(min=1, help="R; may be repeated; default 384 and 64.")] = None,
) -> None:
    """On a GPU: what each kernel of a layer's forward and backward takes, design by design, and what the host takes.

    Example: python -m bench kernels --bottleneck 384
    """
    if not torch.cuda.is_available():
        raise InputError("there is no GPU here; `python -m bench cost` predicts")
    from bench.tuning import profile

    for record in profile.records(tuple(bottleneck or (384, 64))):
        table = Table("kernel", "launches", "µs", title=profile.summary(record))
        for row in record.get("kernels", ()):
            table.add_row(row["name"][:80], f"{row['launches']:g}", f"{row['us']:.1f}")
        _print(table)


@app.command()
def host(
    case: Annotated[str, typer.Argument(help="layer, step or fit.")] = "layer",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the contenders take turns.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="JSON file; the case's rows in it are replaced, those of others stay.")
    ] = None,
) -> None:
    """What the host needs to queue a layer or a training step, with no GPU: launches, waits, and time beside rivals'.

    PyTorch and Triton are shown a CUDA that is not there, on which launches return at once; it takes gcc to build.
    Ratios within a run and counts mean something, on a machine that does nothing else.

    Example: python -m bench host layer --out bench/results/host.json
    """
    from bench.host.run import measured, with_case

    found = measured(case, rounds)
    if out is not None:
        write_json(out, with_case(out, case, rounds, found))
    for title, rows in found.items():
        columns = list(next(iter(rows.values())))
        table = Table("", *columns, title=title)
        for name, row in rows.items():
            table.add_row(name, *(f"{value:.2f}" if key == "ratio" else f"{value:,.0f}" for key, value in row.items()))
        _print(table)


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
    if bottleneck % 16:
        raise InputError(f"R={bottleneck} is no multiple of 16: such rows have one plan")
    from bench.tuning.tiles import sweep

    table = Table("plan", "kernels, µs", "all, µs", title=f"R={bottleneck} {'dynamic' if dynamic else 'static'}")
    for row in track(sweep(bottleneck, "dynamic" if dynamic else 1), "timing", transient=True):
        table.add_row(*row)
    _print(table)


@app.command()
def plans() -> None:
    """What `fe-adapter plan` picks for ViT-B and ViT-L on cards of several sizes, into bench/results/plans.json.

    Example: python -m bench plans
    """
    from bench.suite.budgets import plans as planned

    records = list(track(planned(), "planning"))
    write_json(FOLDER / "plans.json", {"machine": machine(), "predicted": True, "plans": records})


@app.command()
def gelu2bit() -> None:
    """Derive the constants of memory policy gelu2bit anew, and measure how far its gradient is from the exact one.

    Example: python -m bench gelu2bit
    """
    from bench.tuning import gelu2bit as approximation

    for row in approximation.report():
        print("  ".join(f"{name}: {value}" for name, value in row.items()))
