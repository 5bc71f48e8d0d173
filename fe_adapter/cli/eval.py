"""``fe-adapter eval``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Data, Device, Precision, Run, Weights, find_device, words
from fe_adapter.cli.tables import show_published, show_recalls
from fe_adapter.data.faces import FaceOptions
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.data.views import MultiView, Views
from fe_adapter.models.classifier import expected_frames
from fe_adapter.sharing.folder import find_model, load_classifier
from fe_adapter.sharing.hub import is_on_hub
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.settings import tested_on

EXAMPLES = ("fe-adapter eval run videos/ --split test", "fe-adapter eval run dfew:DFEW --protocol 16x2x2")


def eval(
    *,
    run_folder: Run,
    data: Data,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else all of DATA.")] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default RUN/eval, or eval.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="FRAMESxCLIPSxCROPS, such as 16x2x2: the mean over views, beside published figures."),
    ] = None,
    recipe: Annotated[TrainConfig, Fields(only=("batch_size", "num_workers"))],
    clips: Annotated[ClipRecipe, Fields(only=("on_error", "tier", "fold", "frames_folder", "lists_folder"))],
    faces: Annotated[FaceOptions, Fields("Faces", only=("face_model", "on_no_face", "face_cache"))],
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Test a trained model on labelled videos: UAR, WAR, recall of each class, confusion matrix.

    Writes metrics.json, predictions.csv, confusion.csv and .png, risk_coverage.csv and calibration.png.
    """
    from fe_adapter.evaluate.run import evaluate

    views = None if protocol is None else Views.read(protocol)
    model_folder = find_model(run_folder)
    model = load_classifier(model_folder, weights=weights).to(find_device(device))
    clips = tested_on(model, run_folder, data, clips)
    if views is not None:
        clips = dataclasses.replace(clips, num_frames=views.num_frames)
    dataset = clips.open(data, split, class_names=model.class_names)
    dataset.transform = clips.transform(*expected_frames(model))
    faces.crop(dataset, recipe=faces.recipe(model.faces), num_workers=recipe.num_workers)
    shown = dataset if views is None else MultiView(dataset, views)
    on_test = clips.select_on_test and dataset.split_name == "test" and model_folder.name != "last"
    about: dict[str, Any] = {"views": None if views is None else str(views), "select_on_test": on_test}
    about |= {"faces": model.faces, "without_face": len(dataset.faceless)}
    evaluation = evaluate(
        model, shown, batch_size=recipe.batch_size, num_workers=recipe.num_workers, precision=precision
    )
    evaluation = dataclasses.replace(evaluation, about=about)
    folder = out or (Path("eval") if is_on_hub(run_folder) else run_folder / "eval")
    evaluation.save(folder)
    metrics = evaluation.metrics
    if as_json:
        print(json.dumps(evaluation.as_dict()))
    else:
        show_recalls(evaluation)
        if views is not None:
            of_fold = f"fold {clips.fold} alone" if clips.fold else "ours"
            show_published(dataset.origin.get("layout"), [(of_fold, metrics.uar, metrics.war)])
    if on_test:
        words.print("the epoch was chosen on this very test split (--select-on-test): this is no test")
    if dataset.faceless:
        words.print(f"left out, since no face is found in them (--on-no-face skip): {len(dataset.faceless)}")
    words.print(f"written to {folder}")
