"""``fe-adapter crossval``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from fe_adapter.cli.options import Data, show, words
from fe_adapter.cli.tables import show_published
from fe_adapter.data.layouts import Where
from fe_adapter.data.sources import layout_of, read_source
from fe_adapter.data.views import Views
from fe_adapter.errors import InputError
from fe_adapter.evaluate.folds import FoldSummary
from fe_adapter.evaluate.metrics import Metrics
from fe_adapter.files import only_one, read_json, write_json
from fe_adapter.train.state import CHECKPOINT

EXAMPLES = (
    "fe-adapter crossval dfew:DFEW --out runs --backbone timm:vit_base_patch16_clip_224.openai --protocol 16x2x2",
)
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}  # those of train
EPOCHS = ("last", "best")  # adapter folders of a run, in the order of the report
_OF_TEST = (  # options that eval has, too
    "batch_size", "num_workers", "frames_folder", "lists_folder", "on_error", "on_no_face", "face_cache",
)  # fmt: skip


def crossval(
    *,
    context: typer.Context,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the runs, fold-1, fold-2, …, and the summary.")],
    protocol: Annotated[str, typer.Option(help="Of the test, FRAMESxCLIPSxCROPS.")] = "16x1x1",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train and test on every fold of a published data set; DATA comes first, then any options of train.

    Prints UAR and WAR of every fold, their mean and standard deviation, and pooled figures, of the last epoch and of
    the best one by the validation split, beside the published ones. Interrupted, the same command goes on where it was.
    """
    layout, views = layout_of(data), Views.read(protocol)
    if layout is None or layout.num_folds == 0:
        raise InputError(f"crossval: {data} has no folds; it takes DATA first, such as dfew:ROOT, then options")
    rest = ["--num-frames", str(views.num_frames), *context.args]
    train = _command(context, "train")
    with train.make_context("fe-adapter train", [str(data), *rest, "--fold", "1", "--out", str(out)]) as options:
        asked = options.params  # what is wrong with them is said before the first fold
    if asked["num_frames"] != views.num_frames:
        raise InputError(f"--num-frames {asked['num_frames']}, but the protocol {views} says {views.num_frames}")
    for fold in layout.folds():  # so that lists are all there before anything is trained
        read_source(data, fold=fold, where=Where(asked["frames_folder"], asked["lists_folder"]))
    with only_one(out):
        _check_same(out / "crossval.json", {"data": str(data), "protocol": str(views), "options": rest})
        for fold in layout.folds():
            _run_fold(context, f"{data}", rest, out / f"fold-{fold}", str(fold), views, asked)
        summaries = {
            name: FoldSummary(tuple(_metrics(out / f"fold-{k}", name) for k in layout.folds())) for name in EPOCHS
        }
        for name, summary in summaries.items():
            summary.save(out / name)
    on_test = bool(asked["select_on_test"])
    content: dict[str, Any] = {name: summary.as_dict() for name, summary in summaries.items()}
    content |= {"protocol": str(views), "select_on_test": on_test}
    write_json(out / "summary.json", content)
    if as_json:
        print(json.dumps(content))
    else:
        _show(summaries, str(views))
        show_published(layout.name, [(f"{n} epoch", s.mean("uar"), s.mean("war")) for n, s in summaries.items()])
    if on_test:
        words.print("the best epoch of every fold was chosen on its own test split: that row is no test")
    words.print(f"written to {out}")


def _run_fold(context: Any, data: str, rest: list[str], run: Path, fold: str, views: Views, asked: Any) -> None:
    """Train and test one fold, or what of it is not done yet."""
    if all((run / f"eval-{name}" / "metrics.json").exists() for name in EPOCHS):
        return
    words.print(f"fold {fold}")
    resume = ["--resume"] if (run / CHECKPOINT).exists() else []
    with contextlib.redirect_stdout(sys.stderr):
        _call(context, "train", [data, *rest, "--fold", fold, "--out", str(run), *resume])
        for name in EPOCHS:
            own = [f"--{key.replace('_', '-')}={asked[key]}" for key in _OF_TEST if asked[key] is not None]
            own += ["--protocol", str(views), "--out", str(run / f"eval-{name}")]
            _call(context, "eval", [str(run / name), data, *own])


def _command(context: Any, name: str) -> Any:
    return context.parent.command.get_command(context.parent, name)


def _call(context: Any, name: str, arguments: list[str]) -> None:
    code = _command(context, name).main(args=arguments, prog_name=f"fe-adapter {name}", standalone_mode=False)
    if code:  # typer returns what Ctrl-C comes to, and does not raise it
        raise typer.Exit(code)


def _metrics(run: Path, name: str) -> Metrics:
    content = read_json(run / f"eval-{name}" / "metrics.json")
    return Metrics(torch.tensor(content["confusion"]), tuple(content["class_names"]))


def _check_same(file: Path, asked: dict[str, Any]) -> None:
    """Keep what is asked for, or raise `InputError` where the folder is of something else."""
    if not any(file.parent.glob(f"fold-*/{CHECKPOINT}")):  # nothing is trained yet
        write_json(file, asked)
        return
    for key, value in asked.items():
        if read_json(file).get(key) != value:
            raise InputError(f"{file.parent} is of a cross-validation with other {key}; choose another folder")


def _show(summaries: dict[str, FoldSummary], views: str) -> None:
    columns = [f"{name} epoch, {metric}" for name in summaries for metric in ("UAR", "WAR")]
    table = Table("fold", *columns, title=f"test, {views} (frames x clips x crops)")
    shown = [(summary, metric) for summary in summaries.values() for metric in ("uar", "war")]
    for number in range(len(shown[0][0].folds)):
        table.add_row(str(number + 1), *(f"{getattr(s.folds[number], metric):.2%}" for s, metric in shown))
    table.add_section()
    table.add_row("mean ± sd", *(f"{s.mean(metric):.2%} ± {s.deviation(metric):.2%}" for s, metric in shown))
    spans = [s.interval(metric) for s, metric in shown]
    table.add_row("95 % of draws", *(f"{low:.2%} to {high:.2%}" for low, high in spans))
    table.add_row("pooled", *(f"{getattr(s.pooled, metric):.2%}" for s, metric in shown))
    show(table)
