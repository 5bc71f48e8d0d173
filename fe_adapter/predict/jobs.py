"""Many videos, one after another: which there are, which are done already, and what becomes of each.

While a video is predicted, what is known of it is in ``STEM.partial.csv``; once it is whole, that file is gone and the
JSON file is there. A video that fails leaves the others alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fe_adapter.data.frames import holds_frames
from fe_adapter.data.listing import find_videos
from fe_adapter.data.live import is_live, stream_frames, without_password
from fe_adapter.data.packed import file_of
from fe_adapter.data.reading import probe
from fe_adapter.data.transforms import EvalTransform
from fe_adapter.data.video import VIDEO_SUFFIXES, VideoInfo
from fe_adapter.errors import DiskFullError, InputError, PredictionError, Terminated, some
from fe_adapter.files import read_json
from fe_adapter.models.classifier import VideoClassifier, expected_frames
from fe_adapter.predict.ahead import ahead
from fe_adapter.predict.annotate import write_annotated
from fe_adapter.predict.config import PredictConfig
from fe_adapter.predict.live import goes_on
from fe_adapter.predict.passes import Faces, Look, answers, looks_of_live
from fe_adapter.predict.result import Prediction
from fe_adapter.predict.seen import Seen, Tracks
from fe_adapter.predict.tables import GrowingTable, in_style
from fe_adapter.predict.video import Gathered, looks_in

ANNOTATED = ".annotated.mp4"


@dataclasses.dataclass(frozen=True)
class Job:
    """A video that is to be predicted.

    Args:
        path: a file, a folder of frames, a camera or an address.
        stem: of the names of its results.
    """

    path: str
    stem: Path

    @property
    def result(self) -> Path:
        """The file that is there once all results are."""
        return self.stem.with_name(f"{self.stem.name}.json")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has become of a job.

    Args:
        job: it.
        content: its results, as the JSON file has them; None where there are none.
        error: why they are not, or not all there is.
        was_done: they were there before.
        has_begun: there were answers before the error.
    """

    job: Job
    content: Mapping[str, Any] | None = None
    error: InputError | None = None
    was_done: bool = False
    has_begun: bool = False


@dataclasses.dataclass(frozen=True)
class _Begun:
    """The reader has opened a video."""

    video: VideoInfo | None
    seen: Seen


class _Ended:
    """The reader is through with a video."""


def find_jobs(inputs: Sequence[str], out: Path) -> list[Job]:
    """The videos among ``inputs``: files, and folders of videos at any depth, whose results go to the same places in
    ``out``; what earlier predictions have left there is left out.

    Raises:
        InputError: there is no such file, a folder holds no videos and no frames, or a camera is one of several.
    """
    paths: list[str] = []
    places: list[str] = []  # in ``out``
    for given in inputs:
        if is_live(given):
            if len(inputs) > 1:
                raise InputError(f"{given} is a camera or an address, which is watched alone; give nothing beside it")
            return [Job(given, _unused(out / _name_of_live(given)))]
        if not given:
            raise InputError("a VIDEO is an empty text, as of a variable that is not set; for this folder give .")
        if Path(given).is_dir():
            found = [path for path in find_videos(Path(given)) if not _is_ours(path, Path(given), out)]
            if found:
                paths += map(str, found)
                places += [str(path.relative_to(given)) for path in found]
            elif holds_frames(given):
                paths.append(given)
                places.append(Path(given).resolve().name)
            else:
                raise InputError(f"{given} holds no videos and no frames; known endings are {' '.join(VIDEO_SUFFIXES)}")
        elif not Path(given).exists() and not Path(given).parent.joinpath("pack.json").exists():
            raise InputError(f"{given}: no such file")
        else:
            paths.append(given)
            places.append(Path(given).name)
    return [Job(path, stem) for path, stem in zip(paths, output_stems(places, out), strict=True)]


def _unused(stem: Path) -> Path:
    """``stem``, numbered where there are results of it: what was watched before cannot be seen again."""
    numbered = (stem.with_name(f"{stem.name}-{count}") for count in itertools.count(2))
    ends = (".json", ".partial.csv", ".stream.csv")
    return next(s for s in itertools.chain([stem], numbered) if not any(Path(f"{s}{end}").exists() for end in ends))


def _name_of_live(source: str) -> str:
    """Of the results of a camera or an address: of what is on its host, or the host's; no password, no query."""
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise InputError(f"{source} is no address ({error})") from None
    return Path(parts.path).stem or parts.netloc.rpartition("@")[2] or "stream"


def _is_ours(path: Path, folder: Path, out: Path) -> bool:
    """Whether a file in ``folder`` is of an earlier prediction into ``out``."""
    is_below = folder.resolve() in out.resolve().parents
    return path.name.endswith(ANNOTATED) or (is_below and out.resolve() in path.resolve().parents)


def output_stems(places: Sequence[str], out: Path) -> list[Path]:
    """Where to write the results of each file: its own place in ``out``, numbered where two files share one."""
    stems: dict[Path, None] = {}
    for place in places:
        stem = name = (out / place).with_suffix("")
        count = 1
        while stem in stems:
            count += 1
            stem = name.with_name(f"{name.name}-{count}")
        stems[stem] = None
    return list(stems)


def fingerprint(folder: Path) -> str:
    """A hash of the files of an adapter folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def run_jobs(
    model: VideoClassifier,
    jobs: Sequence[Job],
    config: PredictConfig,
    *,
    model_hash: str = "",
    faces: Faces | None = None,
    timeout: float = 10.0,
    shown: Callable[[Job, Prediction], None] = lambda job, prediction: None,
) -> Iterator[Outcome]:
    """Predict many videos in one go, and write the results of each when it is whole.

    One thread reads all of them, one after the other; batches of windows go across files. What has whole results of the
    same file, model and settings is left as it is.

    Args:
        model: in evaluation mode.
        jobs: as of `find_jobs`.
        config: what is looked at, and written.
        model_hash: as of `fingerprint`; other results of another one are not kept.
        faces: who is looked at; None looks at whole frames.
        timeout: seconds to wait for a camera or an address.
        shown: is given every answer as it comes: a `Prediction` of one row.

    Raises:
        InputError: a logit is NaN or infinite, or results cannot be written. What is wrong with one video is in its
            `Outcome`.
    """
    settings = dataclasses.asdict(dataclasses.replace(config, batch_size=8, formats=tuple(sorted(config.formats))))
    made = {
        "model": model_hash,
        "faces": None if faces is None else faces.recipe.as_dict(),
        "settings": {**settings, "formats": list(settings["formats"])},
    }
    watches = len(jobs) == 1 and is_live(jobs[0].path)
    items = _read(model, jobs, config, made, faces, timeout)
    waiting = ahead(items, 2 * config.batch_size, may_lose=watches and goes_on(jobs[0].path))
    current: _Current | None = None
    try:
        for job, item, row in answers(model, waiting, config.batch_size, config.precision, at_once=watches):
            if isinstance(item, dict):
                yield Outcome(job, item, was_done=True)
            elif isinstance(item, _Begun):
                current = _Current(job, model.class_names, item, config, made)
            elif isinstance(item, Look) and current is not None:
                shown(job, current.add(item, row))
            elif isinstance(item, InputError):
                yield current.failed(item) if current is not None else Outcome(job, error=item)
                current = None
            elif isinstance(item, _Ended) and current is not None:
                yield current.ended()
                current = None
    except (KeyboardInterrupt, Terminated):
        if current is not None and watches:
            current.save()
        raise
    finally:
        waiting.close()
        if current is not None:
            current.table.close()


class _Current:
    """The video whose answers come."""

    def __init__(
        self, job: Job, class_names: tuple[str, ...], begun: _Begun, config: PredictConfig, made: Mapping[str, Any]
    ) -> None:
        self._job, self._config, self._seen = job, config, begun.seen
        self._about = {"made": {**made, "input": _state(job.path)}}
        self._gathered = Gathered(without_password(job.path), class_names, begun.video, config.unsure_below)
        self.table = GrowingTable(job.stem.with_name(f"{job.stem.name}.partial.csv"))

    def add(self, look: Look, row: Any) -> Prediction:
        """Take an answer; it is on disk before the next one."""
        answer = self._gathered.add(look, row)
        self.table.add(in_style(answer.record(0), self._config.columns))
        return answer

    def save(self) -> dict[str, Any] | None:
        """Write the results, if there are any, and return them as in the JSON file."""
        if not len(self._gathered):
            return None
        prediction = self._gathered.prediction(self._seen)
        if self._config.smooth is not None:
            prediction = prediction.smoothed(self._config.smooth)
        if self._config.annotate:
            write_annotated(prediction, self._job.stem.with_name(f"{self._job.stem.name}{ANNOTATED}"))
        self._job.result.unlink(missing_ok=True)  # or it would speak for files of two predictions
        prediction.save(self._job.stem, self._config.formats, self._config.columns, self._about)
        self.table.remove()
        return prediction.as_dict() | self._about

    def ended(self) -> Outcome:
        """The outcome of a video that was read to its end."""
        self.table.close()
        try:
            return Outcome(self._job, self.save())
        except DiskFullError:
            raise
        except InputError as error:  # of a file that cannot be read a second time, or not be written
            return Outcome(self._job, error=error, has_begun=True)

    def failed(self, error: InputError) -> Outcome:
        """The outcome of a video that could not be read to its end; all there is of what is not a file."""
        self.table.close()
        if is_live(self._job.path):
            return Outcome(self._job, self.save(), error, has_begun=len(self._gathered) > 0)
        if len(self._gathered):
            error = InputError(f"{error}; what comes before is in {self.table.path}")
        return Outcome(self._job, error=error, has_begun=len(self._gathered) > 0)


def _read(
    model: VideoClassifier,
    jobs: Sequence[Job],
    config: PredictConfig,
    made: Mapping[str, Any],
    faces: Faces | None,
    timeout: float,
) -> Iterator[tuple[Job, Any]]:
    """Each job and what there is to look at in it, between `_Begun` and `_Ended`; results that are there; errors."""
    for job in jobs:
        old = _results(job, made, config)
        if old is not None:
            yield job, old
            continue
        seen = Seen(tracks=Tracks() if config.annotate and faces is not None else None)
        try:
            if is_live(job.path):
                yield job, _Begun(None, seen)
                looks: Iterator[Look | None] = _looks_of_live(model, job.path, config, timeout, faces, seen)
            else:
                info = probe(job.path)
                yield job, _Begun(info, seen)
                looks = looks_in(model, info, config.window, config.step, faces, seen)
            for look in looks:
                yield job, look
            yield job, _Ended()
        except InputError as error:
            yield job, error


def _looks_of_live(
    model: VideoClassifier, source: str, config: PredictConfig, timeout: float, faces: Faces | None, seen: Seen
) -> Iterator[Look | None]:
    length = model.clip_seconds if config.window is None else config.window
    if length is None:
        raise InputError("the model does not say how long the clips of its training were; give --window SECONDS")
    frames = stream_frames(source, timeout=timeout)
    if goes_on(source):
        frames = ahead(frames, 1, may_lose=True)  # where finding faces takes longer than a frame
    step = length / 2 if config.step is None else config.step
    transform = EvalTransform(*expected_frames(model))
    return looks_of_live(frames, length, step, model.num_frames, transform, faces, seen)


def _results(job: Job, made: Mapping[str, Any], config: PredictConfig) -> dict[str, Any] | None:
    """The results of a job, if they are there, whole, and of the same file, model and settings."""
    wanted = {**made, "input": _state(job.path)}
    kinds = [kind for kind in config.formats if kind != "png"]  # which there may be several of
    if is_live(job.path) or not all(job.stem.with_name(f"{job.stem.name}.{kind}").exists() for kind in kinds):
        return None
    try:
        content = read_json(job.result)
    except InputError:
        return None
    is_same = isinstance(content, dict) and content.get("path") == job.path and content.get("made") == wanted
    return content if is_same else None


def _state(path: str) -> dict[str, int] | None:
    """What tells whether a file, or a folder of frames, has changed; None of what is none, or is gone."""
    if is_live(path):
        return None
    try:
        files = (
            [file_of(path)] if not Path(path).is_dir() else [file for file in Path(path).iterdir() if file.is_file()]
        )
        states = [file.stat() for file in files]
    except OSError:
        return None
    return {
        "files": len(states),
        "bytes": sum(state.st_size for state in states),
        "changed": max((state.st_mtime_ns for state in states), default=0),
    }


def failure(outcomes: Sequence[Outcome]) -> Exception | None:
    """What to raise in the end where videos could not be predicted: one line that names them."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return None
    if len(outcomes) > 1:
        names = some(outcome.job.path for outcome in failed)
        return PredictionError(f"{len(failed)} of {len(outcomes)} videos could not be predicted: {names}")
    (only,) = failed
    assert only.error is not None
    return only.error if not only.has_begun else PredictionError(str(only.error))
