"""The folds of a cross-validation together: means and deviations, and everything pooled under a name of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fe_adapter.evaluate.metrics import Metrics, resampled
from fe_adapter.files import write_csv, write_json


@dataclasses.dataclass(frozen=True)
class FoldSummary:
    """The metrics of every fold's test split.

    Args:
        folds: one `Metrics` each, of the same classes, in the order of the folds.
    """

    folds: tuple[Metrics, ...]

    @property
    def pooled(self) -> Metrics:
        """All clips of all folds in one confusion matrix; its UAR is not the mean of theirs."""
        confusion = sum((fold.confusion for fold in self.folds[1:]), self.folds[0].confusion)
        return Metrics(confusion, self.folds[0].class_names)

    def mean(self, name: str) -> float:
        """The mean of the folds' "uar" or "war", what papers print."""
        return float(np.mean([getattr(fold, name) for fold in self.folds]))

    def deviation(self, name: str) -> float:
        """The standard deviation between folds, of a sample; NaN for a single one."""
        values = [getattr(fold, name) for fold in self.folds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def interval(self, name: str) -> tuple[float, float]:
        """Where the mean lies in 95 % of draws of as many clips, with replacement, in every fold."""
        draws = np.mean([resampled(fold.confusion, seed)[name] for seed, fold in enumerate(self.folds)], axis=0)
        low, high = np.quantile(draws, (0.025, 0.975))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        spread = {name: self.deviation(name) if len(self.folds) > 1 else None for name in ("uar", "war")}
        return {
            **{f"mean_{name}": self.mean(name) for name in ("uar", "war")},
            **{f"sd_{name}": spread[name] for name in ("uar", "war")},
            **{f"interval_mean_{name}": list(self.interval(name)) for name in ("uar", "war")},
            **{f"pooled_{name}": getattr(self.pooled, name) for name in ("uar", "war")},
            "folds": [fold.as_dict() for fold in self.folds],
            "pooled": self.pooled.as_dict(),
        }

    def save(self, folder: Path) -> None:
        """Write ``summary.json``, ``folds.csv``, and the pooled confusion matrix as in `Metrics.save`."""
        write_json(folder / "summary.json", self.as_dict())
        rows: list[list[Any]] = [["fold", "clips", "uar", "war"]]
        for number, fold in enumerate(self.folds, 1):
            rows.append([number, int(fold.confusion.sum()), f"{fold.uar:.6f}", f"{fold.war:.6f}"])
        write_csv(folder / "folds.csv", rows)
        self.pooled.save(folder / "pooled")
