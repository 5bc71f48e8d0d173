"""Test a classifier on a labelled data set."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.data.faces import other_than_trained
from fe_adapter.data.feed import Feed
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.distributed import gather, num_processes, process_index
from fe_adapter.errors import InputError
from fe_adapter.evaluate.calibration import (
    area_under_risk_coverage,
    draw_calibration,
    expected_calibration_error,
    risk_coverage,
)
from fe_adapter.evaluate.metrics import Metrics, confusion_matrix
from fe_adapter.files import write_csv, write_figure, write_json
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.inference import classify

_log = logging.getLogger("fe_adapter")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One classifier on one data set, in the set's order.

    Args:
        metrics: UAR, WAR and what they come from.
        paths: n file names.
        labels: ``(n,)`` true classes.
        probabilities: ``(n, C)``.
        about: what else ``metrics.json`` says, as plain values.
    """

    metrics: Metrics
    paths: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, ready for JSON."""
        calibration = {
            "ece": expected_calibration_error(self.probabilities, self.labels),
            "aurc": area_under_risk_coverage(self.probabilities, self.labels),
        }
        return self.metrics.as_dict() | calibration | self.about

    def save(self, folder: Path) -> None:
        """Write the metrics' files, ``predictions.csv``, a line for every clip, ``calibration.png`` and
        ``risk_coverage.csv`` into ``folder``."""
        self.metrics.save(folder)
        names = self.metrics.class_names
        rows: list[list[Any]] = [["path", "label", "prediction", *names]]
        for path, label, p in zip(self.paths, self.labels.tolist(), self.probabilities, strict=True):
            rows.append([path, names[label], names[int(p.argmax())], *(f"{v:.6f}" for v in p.tolist())])
        write_csv(folder / "predictions.csv", rows)
        curve = risk_coverage(self.probabilities, self.labels).tolist()
        shown = [[f"{value:.6f}" for value in row] for row in curve]
        write_csv(folder / "risk_coverage.csv", [["coverage", "risk", "confidence"], *shown])
        write_figure(draw_calibration(self.probabilities, self.labels), folder / "calibration.png")
        write_json(folder / "metrics.json", self.as_dict())  # the last one: where it is, the others are


def evaluate(
    model: VideoClassifier,
    dataset: ClipDataset,
    *,
    batch_size: int = 8,
    num_workers: int | str = "auto",
    precision: str = "auto",
    description: str = "Evaluating",
) -> Evaluation:
    """Class probabilities of every clip of ``dataset``, and the metrics.

    The model keeps its device and its training mode. The processes of a distributed run share the clips, each of which
    counts once, and all get the whole result.

    Args:
        dataset: a `VideoFolder` or `VideoCSV`, with the model's classes in the model's order; of a `MultiView`, the
            probabilities of a video are the mean over its views.
        batch_size: clips at a time.
        num_workers: processes that decode; 0 decodes in this one; "auto" as of `fe_adapter.data.Feed`.
        precision: of autocast, as of `fe_adapter.models.inference.classify`: "auto" is bf16 on a GPU that has it.
        description: in front of the progress bar; empty for none.

    Raises:
        InputError: the data set has other classes than the model, or no clips; an option is out of range; a logit is
            NaN or infinite.
    """
    from rich.console import Console
    from rich.progress import track

    inner: Any = unwrapped(model)
    check_classes(inner, dataset)
    if len(dataset) == 0:
        raise InputError("the data set holds no clips to evaluate on")
    if hasattr(dataset, "face_recipe") and (other := other_than_trained(inner.faces, dataset.face_recipe)):
        _log.warning("%s", other)
    device = next(model.parameters()).device
    shard = (process_index(), num_processes())
    feed = Feed(dataset, batch_size, device=device, num_workers=num_workers, shard=shard)
    shown = track(
        feed.epoch(), description, len(feed), transient=True, disable=not description, console=Console(stderr=True)
    )
    by_index: list[tuple[int, Tensor]] = []
    for indices, rows in classify(model, ((batch["index"], batch["video"]) for batch in shown), precision):
        by_index += zip(indices.tolist(), rows, strict=True)
    gathered = dict(gather(by_index))  # a batch may be in several shards
    views = getattr(dataset, "num_views", 1)
    probability = torch.stack([gathered[index] for index in range(len(dataset))])
    probability = probability.unflatten(0, (-1, views)).mean(1) if views > 1 else probability
    label = torch.tensor(dataset.labels)[::views]
    confusion = confusion_matrix(label, probability.argmax(-1), len(inner.class_names))
    return Evaluation(Metrics(confusion, inner.class_names), tuple(dataset.paths)[::views], label, probability)


def check_classes(model: VideoClassifier, dataset: ClipDataset) -> None:
    """Labels are places in the list of classes, so model and data must have the same list.

    Raises:
        InputError: they have not.
    """
    if tuple(dataset.class_names) != tuple(model.class_names):
        raise InputError(
            f"the data has the classes {', '.join(dataset.class_names)}, "
            f"but the model was trained on {', '.join(model.class_names)}"
        )
