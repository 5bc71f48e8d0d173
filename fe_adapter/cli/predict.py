"""``fe-adapter predict``."""

from __future__ import annotations

import csv
import json
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track
from rich.table import Table

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Device, Precision, Run, Weights, find_device, show, words
from fe_adapter.errors import InputError
from fe_adapter.files import check_folder, make_folder, printable
from fe_adapter.sharing.folder import find_model, load_classifier
from fe_adapter.train.config import TrainConfig

if TYPE_CHECKING:
    from fe_adapter.predict.live import Answer

EXAMPLES = (
    "fe-adapter predict run clip.mp4 other.mp4 --out predictions",
    "fe-adapter predict run clip.mp4 --unsure-below 0.6",
    "fe-adapter predict run 0 --stream",
    "fe-adapter predict run rtsp://camera.local/1 --stream --fps 8 --json",
)


def predict(
    *,
    run_folder: Run,
    videos: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO…", help="Video files of any length; with --stream also a camera or an address."),
    ],
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    window: Annotated[
        float | None, typer.Option(help="Seconds looked at at a time; default the clips of training.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Seconds to the next look; default half a window.")] = None,
    unsure_below: Annotated[
        float | None, typer.Option(help="Say 'unsure' where no class is as probable as this, in (0, 1].")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Answer frame by frame, as frames come: a camera's number, say.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="With --stream, frames looked at a second; default as in training.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="With --stream, seconds to wait for a camera or an address.")] = 10.0,
    recipe: Annotated[TrainConfig, Fields(only=("batch_size",))],
    precision: Precision = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Class probabilities of video files.

    Writes for each file a JSON with the probabilities of the whole and of every window, the same as CSV, and a PNG with
    the timeline. With --stream a line is printed for every frame that is looked at, and written to a CSV.
    """
    from fe_adapter.data import probe
    from fe_adapter.predict.live import predict_stream
    from fe_adapter.predict.result import check_unsure_below, output_stems
    from fe_adapter.predict.video import predict_video

    check_unsure_below(unsure_below)
    if stream and (len(videos) > 1 or step is not None):
        raise InputError("--stream watches one VIDEO and answers at every frame; give one, and leave --step out")
    if fps is not None and not stream:
        raise InputError("--fps is of --stream; a window of a file has as many frames as the model was trained on")
    infos = [] if stream else [probe(path) for path in videos]  # a bad file is refused before anything is written
    check_folder(out)
    model = load_classifier(find_model(run_folder), weights=weights).to(find_device(device))
    if model.note is not None:
        words.print(f"Of this model: {printable(model.note)}")
    if stream:
        answers = predict_stream(model, videos[0], fps=fps, window=window, timeout=timeout, precision=precision)
        make_folder(out)
        _watch(answers, model.class_names, out / f"{output_stems(videos, out)[0].name}.csv", as_json, unsure_below)
        return
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


def _watch(
    answers: Iterable[Answer], class_names: Sequence[str], path: Path, as_json: bool, unsure_below: float | None
) -> None:
    """Print and write every answer as it comes; in the end, or after Ctrl-C, say how fast they came."""
    from fe_adapter.predict.result import UNSURE

    latencies: deque[float] = deque(maxlen=10_000)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["time", *class_names, "latency"])
        try:
            for answer in answers:
                latencies.append(answer.latency)
                by_name = dict(zip(class_names, answer.probabilities.tolist(), strict=True))
                likeliest = max(by_name, key=by_name.__getitem__)
                label = UNSURE if by_name[likeliest] < (unsure_below or 0) else likeliest
                numbers = f"{answer.time:.3f}", *(f"{p:.6f}" for p in by_name.values()), f"{answer.latency:.4f}"
                rows.writerow(numbers)
                file.flush()
                if as_json:
                    line = {"time": answer.time, "label": label, "probabilities": by_name, "latency": answer.latency}
                    print(json.dumps(line), flush=True)
                else:
                    said = f"{answer.time:9.2f} s  {printable(label)} {by_name[likeliest]:.1%}"
                    print(f"{said}  {1000 * answer.latency:.0f} ms", flush=True)
        finally:
            if latencies:
                middle, last = statistics.median(latencies), sorted(latencies)[int(0.95 * (len(latencies) - 1))]
                words.print(f"latency: median {1000 * middle:.1f} ms, 95 % within {1000 * last:.1f} ms; in {path}")
