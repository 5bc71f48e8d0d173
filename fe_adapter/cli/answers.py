"""What ``fe-adapter predict`` shows while answers come, and in the end."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from fe_adapter.cli.options import show, words
from fe_adapter.errors import DiskFullError, InputError, PredictionError
from fe_adapter.files import printable
from fe_adapter.predict.result import label_of, plain
from fe_adapter.predict.tables import GrowingTable, class_columns

if TYPE_CHECKING:
    from fe_adapter.predict.jobs import Job, Outcome
    from fe_adapter.predict.live import Answer
    from fe_adapter.predict.result import Prediction


@contextmanager
def progress_of(jobs: Sequence[Job]) -> Iterator[Callable[[Job, Prediction], None]]:
    """A bar for the video at hand: which one, how much of it, how many of its frames a second, and the time left.

    None is shown of no jobs, and where nobody would see it move.
    """
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
    )  # fmt: skip
    places = {job: place for place, job in enumerate(jobs, 1)}
    with Progress(*columns, console=words, transient=True, disable=not (jobs and words.is_terminal)) as bar:
        task = bar.add_task("Predicting", total=None, speed="")
        now: list[Any] = [None, 0.0]  # the job, and when it began

        def shown(job: Job, answer: Prediction) -> None:
            if job != now[0]:
                now[:] = job, time.perf_counter()
                name = f"{places[job]}/{len(jobs)} {printable(Path(job.path).name)}"
                bar.reset(task, description=name, total=answer.video.duration if answer.video else None)
                return
            seconds = time.perf_counter() - now[1]
            bar.update(task, completed=answer.windows[0][1], speed=f"{answer.frames[0] / seconds:.0f} frames/s")

        yield shown


def print_answer(answer: Prediction, as_json: bool) -> None:
    """One line about a window of what is watched, as soon as it is there."""
    record = answer.record(0)
    if as_json:
        print(json.dumps(record), flush=True)
        return
    start, end, who = record["start"], record["end"], record["face_id"]
    most = "" if not record["success"] else f" {float(answer.window_probabilities[0].max()):.1%}"
    face = "" if who is None else f"  face {who}"
    print(f"{start:9.2f} to {end:.2f} s{face}  {printable(record['label'])}{most}", flush=True)


def show_outcomes(outcomes: Sequence[Outcome], class_names: Sequence[str], as_json: bool) -> None:
    """A table of what there are results of, or all of it as JSON."""
    contents = [outcome.content for outcome in outcomes if outcome.content is not None]
    if as_json:
        print(json.dumps(contents))
        return
    several = any("people" in content for content in contents)
    video = Column("video", overflow="fold")  # its end is what tells it from others
    table = Table(video, *(["face"] if several else []), "label", *map(printable, class_names))
    for content in contents:
        for who, said in _rows(content):
            values = [said["probabilities"][name] for name in class_names]
            shown = ["" if value is None else f"{value:.1%}" for value in values]
            table.add_row(printable(content["path"]), *([who] if several else []), printable(said["label"]), *shown)
    if contents:
        show(table)


def _rows(content: Any) -> list[tuple[str, Any]]:
    people = content.get("people")
    return [(str(person["id"]), person) for person in people] if people else [("", content)]


def watch(
    answers: Iterable[Answer], class_names: Sequence[str], path: Path, as_json: bool, unsure_below: float | None
) -> None:
    """Print and write every answer as it comes; in the end, or after Ctrl-C, say how fast they came.

    Raises:
        PredictionError: no more answers can be had, or be written, after those that were.
    """
    latencies: deque[float] = deque(maxlen=10_000)
    with GrowingTable(path) as table:
        try:
            for answer in answers:
                latencies.append(answer.latency)
                label = label_of(answer.probabilities, class_names, unsure_below)
                by_name = dict(zip(class_names, plain(answer.probabilities), strict=True))
                columns = dict(zip(class_columns(class_names), by_name.values(), strict=True))
                table.add({"time": answer.time, **columns, "latency": answer.latency})
                if as_json:
                    line = {"time": answer.time, "label": label, "probabilities": by_name, "latency": answer.latency}
                    print(json.dumps(line), flush=True)
                else:
                    most = float(answer.probabilities.max())
                    said = f"{answer.time:9.2f} s  {printable(label)}{'' if math.isnan(most) else f' {most:.1%}'}"
                    print(f"{said}  {1000 * answer.latency:.0f} ms", flush=True)
        except InputError as error:
            if isinstance(error, DiskFullError) or not latencies:
                raise
            raise PredictionError(str(error)) from None
        finally:
            if latencies:
                middle, last = statistics.median(latencies), sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1]
                words.print(f"latency: median {1000 * middle:.1f} ms, 95 % within {1000 * last:.1f} ms; in {path}")
