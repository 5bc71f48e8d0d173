"""``fe-adapter predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from rich.table import Table

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Device, Precision, Run, Weights, find_device, show, words
from fe_adapter.files import check_folder, printable
from fe_adapter.sharing.folder import find_model, load_classifier
from fe_adapter.train.config import TrainConfig

EXAMPLES = (
    "fe-adapter predict run clip.mp4 other.mp4 --out predictions",
    "fe-adapter predict run clip.mp4 --unsure-below 0.6",
)


def predict(
    *,
    run_folder: Run,
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Video files of any length.")],
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    window: Annotated[
        float | None, typer.Option(help="Seconds looked at at a time; default the clips of training.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Seconds to the next look; default half a window.")] = None,
    unsure_below: Annotated[
        float | None, typer.Option(help="Say 'unsure' where no class is as probable as this, in (0, 1].")
    ] = None,
    recipe: Annotated[TrainConfig, Fields(only=("batch_size",))],
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Class probabilities of video files.

    Writes for each file a JSON with the probabilities of the whole and of every window, the same as CSV, and a PNG with
    the timeline.
    """
    from fe_adapter.data import probe
    from fe_adapter.predict.result import check_unsure_below, output_stems
    from fe_adapter.predict.video import predict_video

    check_unsure_below(unsure_below)
    infos = [probe(path) for path in videos]  # a bad file is refused before anything is written
    check_folder(out)
    model = load_classifier(find_model(run_folder), weights=weights).to(find_device(device))
    if model.note is not None:
        words.print(f"Of this model: {printable(model.note)}")
    predictions = []
    for info, stem in track(
        list(zip(infos, output_stems([info.path for info in infos], out), strict=True)),
        "Predicting",
        console=words,
        transient=True,
    ):
        prediction = predict_video(
            model,
            info,
            window=window,
            step=step,
            batch_size=recipe.batch_size,
            precision=precision,
            unsure_below=unsure_below,
        )
        prediction.save(stem)  # whatever happens to the next one
        predictions.append(prediction)
    if as_json:
        print(json.dumps([prediction.as_dict() for prediction in predictions]))
    else:
        table = Table("video", "label", *map(printable, model.class_names))
        for prediction in predictions:
            shown = [f"{p:.1%}" for p in prediction.probabilities.tolist()]
            table.add_row(printable(prediction.path), printable(prediction.label), *shown)
        show(table)
    words.print(f"written to {out}")
