"""YuNet in an ONNX file, as OpenCV publishes it (``face_detection_yunet_2023mar.onnx``), through onnxruntime.

At strides 8, 16 and 32 every cell has a class and an object score, whose geometric mean is the face's, and a box: its
centre in cells from the cell's corner, the logarithms of its sides in cells (OpenCV, ``FaceDetectorYN``). The image is
BGR, from 0 to 255, black beyond its right and lower edge. The published file has an input of 640x640 alone, which
onnxruntime insists on; of one of any size the sides are multiples of 32.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fe_adapter.data.faces.boxes import without_doubles
from fe_adapter.errors import InputError, first_line
from fe_adapter.libraries import require

STRIDES = (8, 16, 32)
LEAST_SCORE = 0.5
MOST_OVERLAP = 0.3  # of two faces, as of OpenCV
_OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4}  # and kps, five points that are not needed here


class YuNet:
    """A `Detector`.

    Args:
        file: ONNX.

    Raises:
        InputError: onnxruntime is not installed; there is no such file; it is no YuNet.
    """

    def __init__(self, file: Path) -> None:
        require("onnxruntime", "a face detector in an ONNX file", "yunet")
        if not file.is_file():
            raise InputError(f"{file}: no such file")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # one in a worker, which has neighbours
        options.log_severity_level = 4
        self._file, self.name = file, str(file)
        self._names = [f"{kind}_{stride}" for kind in _OUTPUTS for stride in STRIDES]
        try:
            content = file.read_bytes()
            self._session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes of errors are private
            raise InputError(f"{file} is no ONNX file, or a damaged one: {first_line(error)}") from None
        absent = set(self._names) - {output.name for output in self._session.get_outputs()}
        inputs = self._session.get_inputs()
        if absent or len(inputs) != 1 or len(inputs[0].shape) != 4:
            lacks = f"it lacks the output {min(absent)}" if absent else "its input is no image"
            raise InputError(f"{file} is no YuNet such as face_detection_yunet_2023mar.onnx: {lacks}")
        self.identity = f"yunet {hashlib.blake2b(content, digest_size=16).hexdigest()}"
        self._input = inputs[0].name
        height, width = inputs[0].shape[2:]
        self._fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self(np.zeros((32, 32, 3), np.uint8))  # what is wrong inside shows before a video is opened

    def __call__(self, frame: np.ndarray) -> list[tuple[float, ...]]:
        image, scale = self._image(frame)
        try:
            outputs = self._session.run(self._names, {self._input: image})
        except Exception as error:
            raise InputError(f"{self._file} cannot look at a frame: {first_line(error)}") from None
        by_name = dict(zip(self._names, outputs, strict=True))
        found = [self._decoded(by_name, stride, *image.shape[2:]) for stride in STRIDES]
        boxes, scores = np.concatenate([b for b, _ in found]), np.concatenate([s for _, s in found])
        kept = without_doubles(boxes, scores, MOST_OVERLAP)
        corners = (boxes[:, :2] - boxes[:, 2:] / 2) / scale
        return [(*corners[i], *(boxes[i, 2:] / scale), scores[i]) for i in kept if min(boxes[i, 2:]) >= scale]

    def _image(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        """float32 ``(1, 3, H, W)`` of a size that the net takes, and the scale of the frame in it."""
        pixels, scale = torch.from_numpy(frame).permute(2, 0, 1)[None].flip(1).float(), 1.0
        height, width = frame.shape[:2]
        if self._fixed is not None:
            scale = min(self._fixed[0] / height, self._fixed[1] / width)
            size = max(1, int(height * scale)), max(1, int(width * scale))
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        h, w = pixels.shape[2:]
        full = self._fixed or (-h % 32 + h, -w % 32 + w)
        return F.pad(pixels, (0, full[1] - w, 0, full[0] - h)).numpy(), scale

    def _decoded(self, outputs: dict[str, Any], stride: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(n, 4)``, centre and size in pixels, and scores ``(n,)`` of one stride."""
        rows, columns = height // stride, width // stride
        values = {}
        for kind, count in _OUTPUTS.items():
            value = np.asarray(outputs[f"{kind}_{stride}"], np.float64)
            if value.size != rows * columns * count:
                raise InputError(
                    f"{self._file} is no YuNet: {kind}_{stride} of an image of {height}x{width} has the shape "
                    f"{value.shape}, not (1, {rows * columns}, {count})"
                )
            values[kind] = value.reshape(-1, count)
        score = np.sqrt(values["cls"].clip(0, 1) * values["obj"].clip(0, 1))[:, 0]
        chosen = np.flatnonzero(score >= LEAST_SCORE)
        cells = np.stack([chosen % columns, chosen // columns], 1)
        box = values["bbox"][chosen]
        return np.concatenate([cells + box[:, :2], np.exp(box[:, 2:])], 1) * stride, score[chosen]
