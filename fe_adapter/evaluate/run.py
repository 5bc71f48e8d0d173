"""Test a classifier on a labelled data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.data.loader import make_loader, one_line_errors
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
from fe_adapter.models.classifier import VideoClassifier, probabilities


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
    num_workers: int = 0,
    description: str = "Evaluating",
) -> Evaluation:
    """Class probabilities of every clip of ``dataset``, and the metrics.

    The model keeps its device and its training mode; autocast is the caller's. The processes of a distributed run share
    the clips, each of which counts once, and all get the whole result.

    Args:
        dataset: a `VideoFolder` or `VideoCSV`, with the model's classes in the model's order; of a `MultiView`, the
            probabilities of a video are the mean over its views.
        batch_size: clips at a time.
        num_workers: processes that decode; 0 decodes in this one.
        description: in front of the progress bar; empty for none.

    Raises:
        InputError: the data set has other classes than the model, or no clips.
    """
    from rich.console import Console
    from rich.progress import track

    inner: Any = unwrapped(model)
    check_classes(inner, dataset)
    if len(dataset) == 0:
        raise InputError("the data set holds no clips to evaluate on")
    device = next(model.parameters()).device
    shard = (process_index(), num_processes())
    loader = make_loader(dataset, batch_size, num_workers=num_workers, shard=shard)
    clips: list[tuple[int, str, int, Tensor]] = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in one_line_errors(
            track(loader, description, transient=True, disable=not description, console=Console(stderr=True))
        ):
            by_clip = probabilities(model, batch["video"].to(device, non_blocking=True))
            clips += zip(batch["index"].tolist(), batch["path"], batch["label"].tolist(), by_clip, strict=True)
    model.train(was_training)
    by_index = {index: rest for index, *rest in gather(clips)}  # a batch may be in several shards
    views = getattr(dataset, "num_views", 1)
    paths, labels, rows = zip(*(by_index[index] for index in sorted(by_index)), strict=True)
    paths, label = paths[::views], torch.tensor(labels[::views])
    probability = torch.stack(rows).unflatten(0, (-1, views)).mean(1) if views > 1 else torch.stack(rows)
    confusion = confusion_matrix(label, probability.argmax(-1), len(inner.class_names))
    return Evaluation(Metrics(confusion, inner.class_names), paths, label, probability)


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
