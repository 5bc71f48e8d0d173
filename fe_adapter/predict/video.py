"""What a classifier says about a video file of any length."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from array import array
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_count
from fe_adapter.data.faces import Detector, FaceRecipe
from fe_adapter.data.reading import probe
from fe_adapter.data.sampling import sliding_windows
from fe_adapter.data.transforms import EvalTransform
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.models.classifier import VideoClassifier, expected_frames
from fe_adapter.predict.ahead import ahead
from fe_adapter.predict.passes import Faces, Look, answers, looks_of
from fe_adapter.predict.result import Prediction, check_smooth, check_unsure_below
from fe_adapter.predict.seen import Seen, Tracks


def predict_video(
    model: VideoClassifier,
    video: VideoInfo | str | os.PathLike[str],
    *,
    window: float | None = None,
    step: float | None = None,
    batch_size: int = 8,
    precision: str = "auto",
    unsure_below: float | None = None,
    smooth: float | None = None,
    faces: FaceRecipe | str | None = None,
    detector: Detector | None = None,
) -> Prediction:
    """Slide a window over a video and classify every part of it.

    The video is read once, by a thread ahead of the model. The model keeps its device. Memory is bounded by
    ``batch_size``, not by the video.

    Args:
        model: in evaluation mode.
        video: a file, or what `fe_adapter.data.probe` said of it.
        window: length of a part, in seconds; None is the length of the clips the model was trained on, and the whole
            video where that is not known.
        step: seconds from one part to the next; None is half a window.
        batch_size: parts at a time.
        precision: of autocast, as of `fe_adapter.models.inference.classify`: "auto" is bf16 on a GPU that has it.
        unsure_below: as of `Prediction`.
        smooth: as of `Prediction.smoothed`; None leaves windows as they are.
        faces: "none" looks at whole frames, "largest" at one face, "all" at each person apart; or a whole
            `fe_adapter.data.FaceRecipe`. None is what the model was trained on.
        detector: what finds them, such as a function of your own; None is the recipe's.

    Returns:
        The prediction; ``pandas.DataFrame(prediction.records())`` is its table.

    Raises:
        InputError: no readable video; a window or a step that is not positive; no such precision; a logit is NaN or
            infinite; an ``unsure_below`` outside (0, 1]; as `load_detector`.
    """
    check_count("batch_size", batch_size, 1)
    check_unsure_below(unsure_below)
    check_smooth(smooth)
    info = video if isinstance(video, VideoInfo) else probe(video)
    people = faces_for(model, faces, detector)
    seen = Seen(tracks=None if people is None else Tracks())
    looks = ((None, look) for look in looks_in(model, info, window, step, people, seen))
    inner: Any = unwrapped(model)
    gathered = Gathered(info.path, inner.class_names, info, unsure_below)
    with contextlib.closing(ahead(looks, 2 * batch_size)) as waiting:
        for _, look, row in answers(model, waiting, batch_size, precision):
            gathered.add(look, row)
    prediction = gathered.prediction(seen)
    return prediction if smooth is None else prediction.smoothed(smooth)


def looks_in(
    model: VideoClassifier,
    info: VideoInfo,
    window: float | None,
    step: float | None,
    faces: Faces | None,
    seen: Seen,
) -> Iterator[Look]:
    """What ``model`` is to look at in a video, in windows as of `predict_video`."""
    inner: Any = unwrapped(model)
    length = (inner.clip_seconds or info.duration) if window is None else window
    windows = sliding_windows(info.duration, length, length / 2 if step is None else step)
    return looks_of(info, windows, inner.num_frames, EvalTransform(*expected_frames(inner)), faces, seen)


def faces_for(model: Any, wanted: FaceRecipe | str | None = None, detector: Detector | None = None) -> Faces | None:
    """Who is looked at, as of `predict_video`; None is whole frames."""
    inner: Any = unwrapped(model)
    recipe = wanted
    if not isinstance(recipe, FaceRecipe):
        recipe = FaceRecipe(**(inner.faces or {}) | ({} if recipe is None else {"which": recipe}))
    if recipe.which == "none":
        if detector is not None:
            raise InputError("a face detector is of no use without faces; give faces='largest' or 'all'")
        return None
    return Faces(recipe, detector)


class Gathered:
    """The answers about one video, as they come.

    Args:
        path: as of `Prediction`.
        class_names: likewise.
        video: likewise.
        unsure_below: likewise.
    """

    def __init__(
        self, path: str, class_names: tuple[str, ...], video: VideoInfo | None, unsure_below: float | None
    ) -> None:
        self._empty = Prediction(path, class_names, (), torch.zeros(0, len(class_names)), video, unsure_below)
        self._looks: list[Look] = []
        self._values = array("f")  # an hour has thousands of rows, and a tensor each would be most of the memory

    def add(self, look: Look, row: Tensor | None) -> Prediction:
        """Take the next answer, or None where nobody is there; returns it alone."""
        values = [float("nan")] * len(self._empty.class_names) if row is None else row.tolist()
        self._values.extend(values)
        self._looks.append(dataclasses.replace(look, parts=()))
        return self._of(self._looks[-1:], torch.tensor([values]))

    def prediction(self, seen: Seen) -> Prediction:
        """All of them, at least one."""
        rows = torch.tensor(self._values).unflatten(0, (len(self._looks), -1))
        return dataclasses.replace(self._of(self._looks, rows), seen=seen)

    def __len__(self) -> int:
        return len(self._looks)

    def _of(self, looks: list[Look], rows: Tensor) -> Prediction:
        return dataclasses.replace(
            self._empty,
            windows=tuple((look.start, look.end) for look in looks),
            window_probabilities=rows,
            frames=tuple(look.frame for look in looks),
            timestamps=tuple(look.timestamp for look in looks),
            faces=tuple(look.face for look in looks),
        )
