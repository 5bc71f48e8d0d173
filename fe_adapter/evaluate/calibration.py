"""Whether probabilities are to be believed: a temperature that makes them so, and figures and pictures of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_adapter.files import new_figure

BINS = 15
LEAST_CLIPS = 20  # fewer say too little of a temperature
_LEAST, _MOST = 0.1, 10.0  # temperatures


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature T by which logits are divided so that the labels are likeliest (Guo et al., ICML 2017).

    Args:
        probabilities: ``(n, C)`` at a temperature of 1.
        labels: ``(n,)`` true classes.

    Returns:
        T within [0.1, 10]; 1 for fewer than 20 clips.
    """
    if len(labels) < LEAST_CLIPS:
        return 1.0
    logits = probabilities.double().clamp_min(1e-300).log()  # up to a constant a clip, which changes nothing
    own = logits.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _MOST, 1 / _LEAST
    for _ in range(60):  # the loss is convex in 1/T: bisect its slope
        inverse = (low + high) / 2
        expected = ((inverse * logits).softmax(-1) * logits).sum(-1)
        low, high = (low, inverse) if (expected - own).mean() > 0 else (inverse, high)
    return 2 / (low + high)


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The mean gap between confidence and accuracy over 15 bins of confidence, weighted by their clips, in [0, 1]."""
    _, accuracy, confidence, share = _bins(probabilities, labels)
    return float((share * np.abs(accuracy - confidence)).sum())


def risk_coverage(probabilities: Tensor, labels: Tensor) -> np.ndarray:
    """``(n, 3)``: coverage, risk and confidence, where the least confident clips are left out one after the other.

    Risk is the share of wrong ones among those that are left; the confidence is that of the last one that is.
    """
    confidence, predicted = probabilities.double().max(-1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = (predicted != labels)[order].double().numpy()
    kept = np.arange(1, len(wrong) + 1)
    return np.stack([kept / len(wrong), np.cumsum(wrong) / kept, confidence[order].numpy()], axis=1)


def area_under_risk_coverage(probabilities: Tensor, labels: Tensor) -> float:
    """The mean risk over all coverages, in [0, 1] (Geifman et al., 2019): low where confidence knows what is wrong."""
    return float(risk_coverage(probabilities, labels)[:, 1].mean())


def draw_calibration(probabilities: Tensor, labels: Tensor) -> Any:
    """A matplotlib figure: accuracy by confidence, and risk by coverage."""
    figure, axes = new_figure(8, 3.6)
    axes.remove()
    left, right = figure.subplots(1, 2)
    centres, accuracy, confidence, share = _bins(probabilities, labels)
    filled = share > 0
    left.bar(centres[filled], accuracy[filled], width=1 / BINS, color="C0", edgecolor="white", label="accuracy")
    left.plot(confidence[filled], accuracy[filled], "o", color="C1", markersize=4, label="at the mean confidence")
    left.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"ECE {expected_calibration_error(probabilities, labels):.1%}")
    left.legend(frameon=False, fontsize=8)
    curve = risk_coverage(probabilities, labels)
    right.plot(curve[:, 0], curve[:, 1], color="C0", drawstyle="steps-pre")
    right.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage: share of clips that get an answer")
    right.set(ylabel="risk: share of wrong answers", title=f"area {curve[:, 1].mean():.3f}")
    return figure


def _bins(probabilities: Tensor, labels: Tensor) -> tuple[np.ndarray, ...]:
    """Centres, accuracy, mean confidence and share of the clips of bins of equal width; 0 where there are none."""
    confidence, predicted = probabilities.double().max(-1)
    number = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15], (1/15, 2/15], …
    count, hits, sums = (
        torch.bincount(number, weights=weights, minlength=BINS).numpy()
        for weights in (torch.ones_like(confidence), (predicted == labels).double(), confidence)
    )
    safe = np.maximum(count, 1)
    return (np.arange(BINS) + 0.5) / BINS, hits / safe, sums / safe, count / count.sum()
