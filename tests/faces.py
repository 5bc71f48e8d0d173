"""Videos of white squares in the place of faces, and what finds those; a YuNet that does, in an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

Box = tuple[float, float, float, float]


class Scripted:
    """A detector that finds what it is told, call by call: boxes, each with the score 0.9 or its own."""

    def __init__(self, frames: Sequence[Sequence[Sequence[float]]]) -> None:
        self._frames = iter(frames)

    def __call__(self, frame: np.ndarray) -> list[tuple[float, ...]]:
        return [(*box, 0.9)[:5] for box in next(self._frames)]


def find_white(frame: np.ndarray) -> list[tuple[float, ...]]:
    """The smallest box around all that is white, if anything is."""
    rows, columns = (np.flatnonzero((frame.min(-1) > 200).any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    return [(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1, 0.9)]


find_white.identity = "white"  # type: ignore[attr-defined]


def draw_squares(boxes: Sequence[Box], size: tuple[int, int] = (64, 96)) -> Tensor:
    """uint8 ``(3, H, W)``: white boxes, x, y, width, height, on black; a pixel is as white as it is covered."""
    frame = torch.zeros(size)
    y, x = (torch.arange(n)[:, None] for n in size)
    for left, top, width, height in boxes:
        down = ((y + 1).clamp(max=top + height) - y.clamp(min=top)).clamp(0, 1)
        across = ((x + 1).clamp(max=left + width) - x.clamp(min=left)).clamp(0, 1)
        frame = torch.maximum(frame, down * across.T)
    return (255 * frame).round().to(torch.uint8).expand(3, -1, -1).contiguous()


def write_squares(path: Path, frames: Sequence[Sequence[Box]], fps: int = 10) -> Path:
    """A video of `draw_squares`, one for each of ``frames``."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.options = 64, 96, "yuv420p", {"crf": "1"}
        for boxes in frames:
            image = draw_squares(boxes).permute(1, 2, 0).contiguous().numpy()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def make_yunet(path: Path, size: tuple[int, int] | None = (640, 640), without: str = "", offset: float = 0.5) -> Path:
    """An ONNX file with YuNet's input and outputs: a face is a white cell of 32 pixels, and as large.

    Args:
        path: of the file.
        size: height and width of the only input it takes; None is any.
        without: an output to leave out.
        offset: of a face's centre from its cell's corner, in cells.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    height, width = size or ("height", "width")
    nodes, outputs = [], []
    constants = {"scale": np.array(1 / 255, np.float32), "shape1": np.array([1, -1, 1]), "nothing": np.float32(0)}
    constants |= {"shape4": np.array([1, -1, 4]), "box": np.array([offset, offset, 0, 0], np.float32)}
    constants |= {"nil": np.zeros(4, np.float32), "axes": np.array([1])}
    nodes += [
        helper.make_node("ReduceMean", ["input", "axes"], ["grey"]),
        helper.make_node("Mul", ["grey", "scale"], ["unit"]),
    ]
    for stride in (8, 16, 32):
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes += [
            helper.make_node("AveragePool", ["unit"], [f"cells_{stride}"], **pool),
            helper.make_node("Reshape", [f"cells_{stride}", "shape1"], [f"obj_{stride}"]),
            # small faces there are none
            helper.make_node("Mul", [f"obj_{stride}", "one" if stride == 32 else "nothing"], [f"cls_{stride}"]),
            helper.make_node("Mul", [f"obj_{stride}", "nil"], [f"zeros_{stride}"]),
            helper.make_node("Add", [f"zeros_{stride}", "box"], [f"bbox_{stride}"]),
        ]
        outputs += [(f"cls_{stride}", 1), (f"obj_{stride}", 1), (f"bbox_{stride}", 4)]
    constants["one"] = np.float32(1)
    del constants["shape4"]
    graph = helper.make_graph(
        nodes,
        "yunet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, n])
            for name, n in outputs
            if name != without
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path
