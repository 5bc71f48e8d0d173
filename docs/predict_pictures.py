"""The pictures of docs/predict.md: two drawn people, one of whom goes away for a while, seen by the demo's model.

    fe-adapter demo
    python docs/predict_pictures.py demo/models/fe-adapter-dynamic-dilation/last docs/images

What the model says is what it says; it was trained on drawings of others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fe_adapter import load_classifier, predict_video
from fe_adapter.data import FaceRecipe, read_frames
from fe_adapter.demo.dataset import FRAME_RATE, write_video
from fe_adapter.demo.faces import draw, random_motion, random_scene
from fe_adapter.files import write_figure
from fe_adapter.predict import write_annotated

SECONDS, SIDE, HEIGHT, WIDTH = 20, 144, 240, 400
WALL = 40  # grey


def person(seed: int, expression: str, starts: list[tuple[float, float]]) -> np.ndarray:
    """``(T, SIDE, SIDE, 3)``: an expression that appears and fades in the ranges of ``starts``, in seconds."""
    random, time = np.random.default_rng(seed), np.arange(SECONDS * FRAME_RATE) / FRAME_RATE
    intensity = sum(1 / (1 + np.exp(-10 * (time - a))) - 1 / (1 + np.exp(-10 * (time - b))) for a, b in starts)
    motion = random_motion(random, len(time))
    return draw(random_scene(random), expression, np.asarray(intensity), motion, SIDE)


def film() -> np.ndarray:
    """``(T, HEIGHT, WIDTH, 3)``: one person on the left; on the right one who is away from second 8 to 13."""
    frames = np.full((SECONDS * FRAME_RATE, HEIGHT, WIDTH, 3), WALL, np.uint8)
    left = person(4, "happiness", [(2.5, 6.5), (11.5, 16.0)])
    right = person(11, "surprise", [(4.5, 7.0), (15.0, 18.0)])
    top = 16
    for i in range(len(frames)):
        shift = round(14 * np.sin(i / 70))
        frames[i, top : top + SIDE, 26 + shift : 26 + shift + SIDE] = left[i]
        if not 8 <= i / FRAME_RATE < 13:
            frames[i, top : top + SIDE, 228 - shift : 228 - shift + SIDE] = right[i]
    return frames


def find_people(frame: np.ndarray) -> list[tuple[float, ...]]:
    """Who is in front of the wall, left and right: a `fe_adapter.data.faces.Detector`."""
    found, height, width = [], *frame.shape[:2]
    for first, end in ((0, width // 2), (width // 2, width)):
        rows, columns = np.nonzero((np.abs(frame[:, first:end].astype(int) - WALL) > 12).any(-1))
        if len(rows) > height * width // 50:
            x, y = first + columns.min(), rows.min()
            found.append((x, y, columns.max() - columns.min() + 1, rows.max() - rows.min() + 1, 0.99))
    return found


def main(model_folder: str, out: Path) -> None:
    model = load_classifier(model_folder)
    recipe = FaceRecipe("all", margin=0.0, size=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two.mp4"
        write_video(path, film())
        prediction = predict_video(
            model, path, step=0.25, smooth=0.5, faces=recipe, detector=find_people, unsure_below=0.6
        )
        for who in prediction.people[:2]:
            write_figure(prediction.of(who).timeline(), out / f"timeline-face{who}.png")
        write_annotated(prediction, Path(folder) / "two.annotated.mp4")
        (frame,) = read_frames(Path(folder) / "two.annotated.mp4", [4 * FRAME_RATE])
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(out / "annotated.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
