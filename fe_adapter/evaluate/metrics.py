"""UAR, WAR, recall per class, and the confusion matrix they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_adapter.files import new_figure, write_csv, write_figure


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Args:
        confusion: ``(C, C)`` int64, row: true class, column: predicted class.
        class_names: C names.
    """

    confusion: Tensor
    class_names: tuple[str, ...]

    @property
    def recall(self) -> Tensor:
        """``(C,)`` share of each class that was recognised, in [0, 1]; NaN where the set holds none of it."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def uar(self) -> float:
        """Unweighted average recall, in [0, 1]: the mean of `recall` over the classes present."""
        return self.recall.nanmean().item()

    @property
    def war(self) -> float:
        """Weighted average recall, in [0, 1]: the accuracy."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    def interval(self, name: str) -> tuple[float, float]:
        """Where "uar" or "war" lies in 95 % of draws of as many clips, with replacement."""
        low, high = np.quantile(resampled(self.confusion)[name], (0.025, 0.975))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        recall = {
            name: None if value != value else value
            for name, value in zip(self.class_names, self.recall.tolist(), strict=True)
        }
        return {
            "uar": self.uar,
            "war": self.war,
            "interval_uar": list(self.interval("uar")),
            "interval_war": list(self.interval("war")),
            "num_clips": int(self.confusion.sum()),
            "recall": recall,
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
        }

    def save(self, folder: Path) -> None:
        """Write ``confusion.csv`` and ``confusion.png`` into ``folder``."""
        rows = [["true \\ predicted", *self.class_names]]
        rows += [[name, *row] for name, row in zip(self.class_names, self.confusion.tolist(), strict=True)]
        write_csv(folder / "confusion.csv", rows)
        write_figure(self._figure(), folder / "confusion.png")

    def _figure(self) -> Any:
        C = len(self.class_names)
        figure, axes = new_figure(2 + 0.5 * C, 1.5 + 0.5 * C)
        share = self.confusion / self.confusion.sum(1, keepdim=True).clamp_min(1)
        axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(C), self.class_names, rotation=45, ha="right")
        axes.set_yticks(range(C), self.class_names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"UAR {self.uar:.1%}, WAR {self.war:.1%}")
        for i, row in enumerate(self.confusion.tolist()):
            for j, count in enumerate(row):
                axes.text(j, i, count, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
        return figure


def resampled(confusion: Tensor, seed: int = 0, draws: int = 2000) -> dict[str, np.ndarray]:
    """``(draws,)`` values of "uar" and of "war" over bootstrap draws of the clips that a confusion matrix counts.

    To draw n clips with replacement is to draw n cells of the matrix, each as likely as it is full.
    """
    cells = confusion.double().numpy()
    n = int(cells.sum())
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, cells.ravel() / n, size=draws).reshape(draws, *cells.shape)
    hits, clips = np.diagonal(drawn, axis1=1, axis2=2), drawn.sum(2)
    recall = np.divide(hits, clips, out=np.full(hits.shape, np.nan), where=clips > 0)
    return {"uar": np.nanmean(recall, axis=1), "war": hits.sum(1) / n}


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """``(C, C)`` int64 counts, row: label, column: prediction, of two ``(n,)`` integer tensors."""
    counts = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)
