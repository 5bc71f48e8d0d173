"""``fe-adapter eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Data, Device, Run, Weights, find_device, show, words
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.files import printable
from fe_adapter.models.classifier import expected_frames
from fe_adapter.sharing.folder import find_model, load_classifier
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.settings import tested_on

EXAMPLES = ("fe-adapter eval run videos/ --split test", "fe-adapter eval run dfew:DFEW")


def eval(
    *,
    run_folder: Run,
    data: Data,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else all of DATA.")] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default RUN/eval.")] = None,
    recipe: Annotated[TrainConfig, Fields(only=("batch_size", "num_workers"))],
    clips: Annotated[ClipRecipe, Fields(only=("on_error", "fold", "frames_folder", "lists_folder"))],
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Test a trained model on labelled videos: UAR, WAR, recall of each class, confusion matrix.

    Writes metrics.json, predictions.csv, confusion.csv and confusion.png.
    """
    from fe_adapter.evaluate.run import evaluate

    model = load_classifier(find_model(run_folder), weights=weights).to(find_device(device))
    clips = tested_on(model, run_folder, data, clips)
    dataset = clips.open(data, split, class_names=model.class_names)
    dataset.transform = clips.transform(*expected_frames(model))
    evaluation = evaluate(model, dataset, batch_size=recipe.batch_size, num_workers=recipe.num_workers)
    folder = out or run_folder / "eval"
    evaluation.save(folder)
    metrics = evaluation.metrics
    if as_json:
        print(json.dumps(metrics.as_dict()))
    else:
        table = Table("class", "clips", "recall", title=f"UAR {metrics.uar:.1%}   WAR {metrics.war:.1%}")
        for name, row, recall in zip(metrics.class_names, metrics.confusion, metrics.recall.tolist(), strict=True):
            table.add_row(printable(name), str(int(row.sum())), f"{recall:.1%}")
        show(table)
    words.print(f"written to {folder}")
