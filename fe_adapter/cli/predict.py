"""``fe-adapter predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fe_adapter.checks import check_positive
from fe_adapter.cli.answers import print_answer, progress_of, show_outcomes, watch
from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Device, Run, Weights, find_device, words
from fe_adapter.data.faces import FaceOptions, other_than_trained
from fe_adapter.errors import InputError
from fe_adapter.files import check_folder, only_one, printable
from fe_adapter.predict.config import PredictConfig
from fe_adapter.sharing.folder import find_model, load_classifier

EXAMPLES = (
    "fe-adapter predict run clip.mp4 other.mp4 --out predictions",
    "fe-adapter predict run videos --smooth 2 --unsure-below 0.6 --formats json,csv,png,parquet",
    "fe-adapter predict run clip.mp4 --faces all --annotate",
    "fe-adapter predict run 0",
    "fe-adapter predict run 0 --stream",
    "fe-adapter predict run rtsp://camera.local/1 --stream --fps 8 --json",
)


def predict(
    *,
    run_folder: Run,
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO…",
            help="Video files of any length, folders of videos or of frames; or one camera (its number) or address.",
        ),
    ],
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    config: Annotated[PredictConfig, Fields()],
    faces: Annotated[FaceOptions, Fields("Faces", only=("faces", "face_model", "face_margin", "face_detection_size"))],
    stream: Annotated[
        bool, typer.Option("--stream", help="Answer frame by frame, as frames come; needs causal adapters.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="With --stream, frames looked at a second; default as in training.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a camera or an address.")] = 10.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Class probabilities of videos.

    Writes for each a JSON with the probabilities of the whole and of every window, the windows as a CSV table, and a
    PNG with the timeline. What has whole results already is left as it is; a video that fails leaves the others alone.
    Of a camera or an address, windows are answered until it ends or Ctrl-C is pressed. With --stream a line is printed
    for every frame that is looked at, and written to NAME.stream.csv.
    """
    from fe_adapter.data.live import is_live
    from fe_adapter.predict.jobs import failure, find_jobs, fingerprint, run_jobs
    from fe_adapter.predict.live import predict_stream
    from fe_adapter.predict.video import faces_for

    if stream and len(videos) > 1:
        raise InputError("--stream watches one VIDEO; give one")
    for name in ("step", "batch_size", "smooth", "formats", "columns"):
        if stream and getattr(config, name) != getattr(PredictConfig, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"--stream writes one answer for every frame, as it comes, to a CSV; leave {option} out")
    if fps is not None and not stream:
        raise InputError("--fps is of --stream; a window of a file has as many frames as the model was trained on")
    if config.annotate and (stream or any(map(is_live, videos))):
        raise InputError("--annotate writes a file again; a camera, an address or --stream has none")
    check_positive("timeout", timeout)
    jobs = find_jobs(videos, out)
    if stream and len(jobs) > 1:
        raise InputError(f"--stream watches one VIDEO, and {videos[0]} holds {len(jobs)}")
    check_folder(out)
    folder = find_model(run_folder)
    model = load_classifier(folder, weights=weights).to(find_device(device))
    if model.note is not None:
        words.print(f"Of this model: {printable(model.note)}")
    recipe = faces.recipe(model.faces)
    people = faces_for(model, recipe)
    doubt = other_than_trained(model.faces, recipe)
    if doubt is not None:
        words.print(f"{doubt[0].upper()}{doubt[1:]}.")
    if stream:
        answers = predict_stream(
            model, videos[0], fps=fps, window=config.window, timeout=timeout, precision=config.precision, faces=people
        )
        with only_one(out):
            table = jobs[0].stem.with_name(f"{jobs[0].stem.name}.stream.csv")
            watch(answers, model.class_names, table, as_json, config.unsure_below)
        return
    watched = is_live(jobs[0].path)
    outcomes = []
    with only_one(out), progress_of([] if watched else jobs) as progress:
        show_one = (lambda job, answer: print_answer(answer, as_json)) if watched else progress
        for outcome in run_jobs(
            model, jobs, config, model_hash=fingerprint(folder), faces=people, timeout=timeout, shown=show_one
        ):
            outcomes.append(outcome)
            if outcome.error is not None and len(jobs) > 1:
                words.print(printable(str(outcome.error)))
    error = failure(outcomes)
    if not watched and (error is None or len(jobs) > 1):
        show_outcomes(outcomes, model.class_names, as_json)
    done = sum(outcome.was_done for outcome in outcomes)
    if done:
        words.print(f"{done} of {len(jobs)} were done before, and are left as they are")
    if any(outcome.content is not None for outcome in outcomes):
        words.print(f"written to {out}")
    if error is not None:
        raise error
