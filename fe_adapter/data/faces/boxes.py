"""Boxes ``(…, 4)`` as centre x, centre y, width, height, in pixels."""

from __future__ import annotations

import numpy as np


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The area that boxes share over the area that they cover together, of shapes that broadcast."""
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    shared = np.prod(np.maximum(0, high - low), -1)
    return shared / (np.prod(a[..., 2:], -1) + np.prod(b[..., 2:], -1) - shared)


def without_doubles(boxes: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
    """Which of ``(n, 4)`` boxes to keep, best first: none overlaps a better one by more than ``most``."""
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][overlap(boxes[left[0]], boxes[left[1:]]) <= most]
    return kept
