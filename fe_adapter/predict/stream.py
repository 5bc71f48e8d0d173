"""What a classifier says about streams, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_count
from fe_adapter.errors import InputError
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.streaming import AdapterStreams


class StreamingClassifier:
    """Class logits of one or many streams: at each frame those of the clip of all frames so far, at the cost of one.

    What is kept of earlier frames is a ring in every adapter, R wide, and the sum of the frame features: a constant,
    unless the adapters have a dynamic dilation without an upper bound. Autocast is the caller's, and stays as it is
    from frame to frame. A frame that fails lets all streams begin again.

    Args:
        model: a `VideoClassifier` with causal adapters, or without adapters, in evaluation mode; it may be used
            otherwise in between, by this thread.
        batch_size: streams B, such as people.
        window: frames whose features are averaged, the last ones; None is all of them, as the model does with a clip.

    Raises:
        InputError: the model's adapters look at later frames, its head needs whole clips, or it is in training mode.

    Example:
        >>> stream = StreamingClassifier(model)
        >>> for frame in frames:  # (3, h, w) each
        ...     logits = stream(frame[None])
    """

    def __init__(self, model: VideoClassifier, batch_size: int = 1, *, window: int | None = None) -> None:
        inner: Any = unwrapped(model)
        self._model: VideoClassifier = inner
        if self._model.temporal_pool != "mean":
            raise InputError(
                f"temporal_pool={self._model.temporal_pool!r} needs whole clips; train with 'mean' for streams"
            )
        if self._model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.window = None if window is None else check_count("window", window, 1)
        adapted = self._model.tune == "adapter"
        self._adapters = AdapterStreams(self._model.vit, batch_size) if adapted else None
        self._sums: Tensor | None = None  # (B, D) of the features, where there is no window
        self._ring: Tensor | None = None  # (B, window, D)
        self._counts = [0] * self.batch_size  # frames of each stream

    @property
    def num_frames(self) -> list[int]:
        """How many frames came of each stream since it began."""
        return list(self._counts)

    def __call__(self, frames: Tensor) -> Tensor:
        """Logits ``(B, C)`` at the next frame of every stream.

        Args:
            frames: ``(B, 3, h, w)`` uint8, or float in [0, 1].

        Raises:
            InputError: another number of streams, or frames of a size that the model does not take.
        """
        if frames.dim() != 4 or len(frames) != self.batch_size:
            raise InputError(
                f"a frame of {self.batch_size} streams is ({self.batch_size}, 3, h, w); got {tuple(frames.shape)}"
            )
        with torch.no_grad():
            images = self._model.normalized(frames[:, None])
            try:
                return self._model.classify(self._pooled(self._features(images)))
            except BaseException:
                self.reset()  # some adapters have seen the frame, and others not
                raise

    def reset(self, streams: Sequence[int] | Tensor | None = None) -> None:
        """Let ``streams`` (indices, or a mask) begin again; None is all of them.

        Raises:
            InputError: there is no such stream.
        """
        try:
            chosen = [] if streams is None else torch.arange(self.batch_size)[torch.as_tensor(streams).cpu()].tolist()
        except IndexError:
            raise InputError(f"streams={streams} are not among the {self.batch_size} streams") from None
        if self._adapters is not None:
            self._adapters.reset(streams)
        if streams is None:
            self._sums = self._ring = None
            self._counts = [0] * self.batch_size
            return
        for kept in (self._sums, self._ring):
            if kept is not None:
                kept[chosen] = 0
        for stream in chosen:
            self._counts[stream] = 0

    def _features(self, images: Tensor) -> Tensor:
        if self._adapters is None:
            return self._model.frame_features(images)
        with self._adapters.running():
            return self._model.frame_features(images)

    def _pooled(self, features: Tensor) -> Tensor:
        """The mean of the features, with those of the next frame ``(B, D)``."""
        if self.window is None:
            wide = torch.float32 if features.device.type == "mps" else torch.float64  # hours of frames
            self._sums = features.to(wide) if self._sums is None else self._sums + features
            total, most = self._sums, max(self._counts) + 1
        else:
            if self._ring is None:
                self._ring = features.new_zeros(self.batch_size, self.window, features.shape[-1])
            rows = torch.tensor(self._counts) % self.window
            self._ring[torch.arange(self.batch_size), rows] = features
            total, most = self._ring.sum(1), self.window
        self._counts = [count + 1 for count in self._counts]
        counts = torch.tensor(self._counts, device=total.device).clamp(max=most)[:, None]
        return (total / counts).to(features.dtype)
