"""`ClipDataset`: what training and testing need of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class ClipDataset(Protocol):
    """A labelled set of clips, as `make_loader`, `fit` and `evaluate` take it: a `VideoDataset`, or one like it."""

    @property
    def class_names(self) -> Sequence[str]:
        """The classes, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of every clip, as a place in ``class_names``."""

    @property
    def paths(self) -> Sequence[str]:
        """What every clip is called: its file."""

    @property
    def sampler(self) -> Any:
        """Which frames make a clip; its ``repr`` tells a run that is resumed whether they are the same."""

    @property
    def transform(self) -> Any:
        """What is done to a clip; its ``repr`` as of ``sampler``."""

    @property
    def clip_seconds(self) -> float | None:
        """The time a clip spans in its video, in seconds, where that is known."""

    def set_epoch(self, epoch: int) -> None:
        """Other chance; called before the loader of an epoch is made."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"video": (T, 3, h, w), "label": int, "path": str, "index": int}``, or ``(T, L, D)`` tokens as video."""
