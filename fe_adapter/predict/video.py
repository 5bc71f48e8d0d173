"""What a classifier says about a video file of any length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_count
from fe_adapter.data.feed import transformed
from fe_adapter.data.reading import probe, read_frames
from fe_adapter.data.sampling import FrameSampler, sliding_windows
from fe_adapter.data.transforms import EvalTransform, compact
from fe_adapter.data.video import VideoInfo
from fe_adapter.models.classifier import VideoClassifier, expected_frames
from fe_adapter.models.inference import classify
from fe_adapter.predict.result import Prediction, check_unsure_below


def predict_video(
    model: VideoClassifier,
    video: VideoInfo | str | os.PathLike[str],
    *,
    window: float | None = None,
    step: float | None = None,
    batch_size: int = 8,
    precision: str = "auto",
    unsure_below: float | None = None,
) -> Prediction:
    """Slide a window over a video and classify every part of it.

    The model keeps its device. Memory is bounded by ``batch_size``, not by the video.

    Args:
        model: in evaluation mode.
        video: a file, or what `fe_adapter.data.probe` said of it.
        window: length of a part, in seconds; None is the length of the clips the model was trained on, and the whole
            video where that is not known.
        step: seconds from one part to the next; None is half a window.
        batch_size: parts at a time.
        precision: of autocast, as of `fe_adapter.models.inference.classify`: "auto" is bf16 on a GPU that has it.
        unsure_below: as of `Prediction`.

    Raises:
        InputError: no readable video; a window or a step that is not positive; no such precision; a logit is NaN or
            infinite; an ``unsure_below`` outside (0, 1].
    """
    check_count("batch_size", batch_size, 1)
    check_unsure_below(unsure_below)
    inner: Any = unwrapped(model)
    info = video if isinstance(video, VideoInfo) else probe(video)
    length = (inner.clip_seconds or info.duration) if window is None else window
    windows = sliding_windows(info.duration, length, length / 2 if step is None else step)
    device = next(model.parameters()).device
    batches = _batches(inner, info, windows, batch_size, device)
    rows = [row for _, row in classify(model, batches, precision)]
    return Prediction(info.path, inner.class_names, tuple(windows), torch.cat(rows), info, unsure_below)


def _batches(
    model: VideoClassifier, info: VideoInfo, windows: list[tuple[float, float]], batch_size: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """The first window of each batch, and its clips; while those are classified, the next ones are decoded."""
    sampler, transform = FrameSampler(model.num_frames), EvalTransform(*expected_frames(model))
    for i in range(0, len(windows), batch_size):
        cuts = [transform.cut(read_frames(info, sampler(info, window=w))) for w in windows[i : i + batch_size]]
        parts = [compact(part, edit) for part, edit in cuts]
        if device.type == "cuda":
            parts = [part.pin_memory() for part in parts]
        yield i, transformed(parts, [edit for _, edit in cuts], device)
