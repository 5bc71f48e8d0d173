"""Class probabilities while a file, a camera or an address is watched."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fe_adapter.checks import check_count, check_positive
from fe_adapter.data.faces import crop_face
from fe_adapter.data.live import is_live, stream_frames
from fe_adapter.data.transforms import EvalTransform
from fe_adapter.errors import InputError
from fe_adapter.models.classifier import VideoClassifier, expected_frames
from fe_adapter.models.inference import classifying, finite
from fe_adapter.predict.ahead import ahead
from fe_adapter.predict.passes import Faces
from fe_adapter.predict.stream import StreamingClassifier

_WAITS_FOR_US = ("http", "https", "file")  # protocols by which frames do not go on without us


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says at one frame.

    Args:
        time: of the frame, in seconds since the first.
        probabilities: ``(C,)``; NaN where a face is looked for, and nobody is there.
        latency: seconds from the decoded frame to the answer.
    """

    time: float
    probabilities: Tensor
    latency: float


def frames_per_second(model: VideoClassifier) -> float | None:
    """How many frames a second the model was trained on, where that is known."""
    return None if model.clip_seconds is None else model.num_frames / model.clip_seconds


def predict_stream(
    model: VideoClassifier,
    source: str,
    *,
    fps: float | None = None,
    window: float | None = None,
    timeout: float = 10.0,
    precision: str = "auto",
    faces: Faces | None = None,
) -> Iterator[Answer]:
    """Answers frame by frame, each as soon as its frame is there; a camera that is faster than the model skips some.

    Args:
        model: with causal adapters, in evaluation mode.
        source: as of `fe_adapter.data.stream_frames`.
        fps: frames looked at a second; None is as many as in the clips of training, and all where that is not known.
        window: seconds that an answer is about; None is as many frames as a clip of training had.
        timeout: seconds to wait for a camera or an address.
        precision: of autocast, as of `fe_adapter.models.inference.classify`.
        faces: whose "largest" face is looked at; where it is somebody else's, or was out of sight, the stream begins
            again. None looks at whole frames.

    Raises:
        InputError: the model cannot be used frame by frame; as `fe_adapter.data.stream_frames`; or a number that is not
            positive.
    """
    for name, value in (("fps", fps), ("window", window), ("timeout", timeout)):
        if value is not None:
            check_positive(name, value)
    if faces is not None and faces.recipe.which == "all":
        raise InputError("a stream is about one person, or whole frames; take faces='largest'")
    rate = frames_per_second(model) if fps is None else fps
    if window is not None and rate is None:
        raise InputError("the model does not say how many frames a second it was trained on; give fps with window")
    num_frames = model.num_frames if window is None or rate is None else max(1, round(window * rate))
    classifier = StreamingClassifier(model, window=check_count("window", num_frames, 1, 2**16))
    return _answers(classifier, model, source, rate, timeout, precision, faces)


def _answers(
    classifier: StreamingClassifier,
    model: VideoClassifier,
    source: str,
    rate: float | None,
    timeout: float,
    precision: str,
    faces: Faces | None,
) -> Iterator[Answer]:
    run = classifying(model, precision)
    transform, device = EvalTransform(*expected_frames(model)), next(model.parameters()).device
    frames = at_rate(stream_frames(source, timeout=timeout), rate)
    if goes_on(source):
        frames = ahead(frames, 1, may_lose=True)
    tracker, person = None if faces is None else faces.tracker(), None
    for seconds, frame in frames:
        start = time.perf_counter()
        if faces is not None and tracker is not None:
            found = tracker.update(seconds, frame)
            if not found or found[0].id != person:
                classifier.reset()
            person = found[0].id if found else None
            if not found:
                yield Answer(seconds, torch.full((len(model.class_names),), torch.nan), time.perf_counter() - start)
                continue
            frame = crop_face(frame, found[0], faces.recipe)
        answer = finite(run(classifier, transform(frame[None]).to(device)).read())[0]
        yield Answer(seconds, answer, time.perf_counter() - start)


def goes_on(source: str) -> bool:
    """Whether the frames of ``source`` come when they come, as a camera's do, and not when they are asked for."""
    return is_live(source) and source.partition("://")[0] not in _WAITS_FOR_US


def at_rate(frames: Iterator[tuple[float, Tensor]], rate: float | None) -> Iterator[tuple[float, Tensor]]:
    """``rate`` of the frames a second, or all that there are, if they are fewer; None is all."""
    due = 0.0
    for seconds, frame in frames:
        if rate is None or seconds >= due - 1e-6:
            yield seconds, frame
            if rate is not None:
                due = 1 / rate + (due if seconds < due + 1 / rate else seconds)  # after a gap it begins anew
