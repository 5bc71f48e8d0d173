"""What of a `VideoClassifier` belongs to its active adapter, and is put by while another one is active."""

from __future__ import annotations

from typing import Any

from torch import nn

VALUES = ("class_names", "num_frames", "temporal_pool", "clip_seconds", "clip_sampling", "faces", "note", "temperature")
MODULES = ("pool", "dropout", "head")


class Task(nn.Module):
    """The head of an adapter, how features are pooled for it, its class names, and what else is told of its training.

    It has the attributes `VALUES` and `MODULES` of a `VideoClassifier`.
    """

    class_names: tuple[str, ...]
    num_frames: int
    temporal_pool: str
    pool: nn.Module | None
    dropout: nn.Dropout
    head: nn.Linear

    def __init__(self, values: dict[str, Any], modules: dict[str, nn.Module | None]) -> None:
        super().__init__()
        for name in VALUES:
            setattr(self, name, values[name])
        for name in MODULES:
            self.add_module(name, modules[name])

    @staticmethod
    def key(adapter: str) -> str:
        """By which a classifier has the task of an adapter: some names are attributes of every module."""
        return f"of_{adapter}"

    @classmethod
    def of(cls, classifier: nn.Module) -> Task:
        """The one that ``classifier`` has at present."""
        return cls(
            {name: getattr(classifier, name) for name in VALUES}, {name: getattr(classifier, name) for name in MODULES}
        )

    def put_into(self, classifier: nn.Module) -> None:
        """Let ``classifier`` have it."""
        for name in VALUES:
            setattr(classifier, name, getattr(self, name))
        for name in MODULES:
            classifier._modules[name] = getattr(self, name)
