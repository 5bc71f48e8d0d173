"""The demo's data: stills to recognise an expression in, and videos whose class is visible in motion only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fe_adapter.demo.faces import EXPRESSIONS, Array, draw, random_motion, random_scene
from fe_adapter.errors import InputError
from fe_adapter.files import make_folder

CLASSES = ("onset", "offset")  # an expression appears, or it fades
NUM_FRAMES = 24  # of a video
FRAME_RATE = 24  # frames per second


def make_stills(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Faces with an expression, or without: uint8 ``(n, 3, SIZE, SIZE)`` and classes ``(n,)``, the last one neutral."""
    random = np.random.default_rng(seed)
    names = list(EXPRESSIONS)
    images: list[Array] = []
    labels: list[int] = []
    while len(labels) < num_images:
        label = int(random.integers(len(names)))
        intensity = np.concatenate([random.uniform(0.0, 0.1, 1), random.uniform(0.35, 1.0, 5)])
        images.append(draw(random_scene(random), names[label], intensity, random_motion(random, 6)))
        labels += [len(names), *[label] * 5]
    pixels = torch.from_numpy(np.concatenate(images)[:num_images])
    return rearrange(pixels, "n h w c -> n c h w").contiguous(), torch.tensor(labels[:num_images])


def write_videos(folder: Path | str, num_pairs: int, seed: int) -> None:
    """Write ``num_pairs`` videos into ``folder/onset`` and their exact time reversals into ``folder/offset``.

    Both files of a pair hold the same frames, bit for bit, so a model that averages over frames cannot tell them apart.
    """
    random = np.random.default_rng(seed)
    for i in range(num_pairs):
        frames = draw_onset(random)
        for name, clip in zip(CLASSES, (frames, frames[::-1]), strict=True):
            write_video(Path(folder) / name / f"{i:04d}.mp4", clip)


def draw_onset(random: np.random.Generator, num_frames: int = NUM_FRAMES) -> Array:
    """uint8 ``(T, SIZE, SIZE, 3)``: some face, some expression, from (nearly) neutral to (nearly) full."""
    t = np.linspace(0, 1, num_frames)
    middle, speed = random.uniform(0.3, 0.7), random.uniform(6, 14)
    intensity = random.uniform(0.7, 1.0) / (1 + np.exp(-speed * (t - middle)))
    expression = str(random.choice(list(EXPRESSIONS)))
    return draw(random_scene(random), expression, intensity, random_motion(random, num_frames))


def write_video(path: Path, frames: Array) -> None:
    """Write uint8 ``(T, h, w, 3)`` as H.264 without loss, so that a frame looks the same wherever it is in a file."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise InputError("writing videos needs PyAV; pip install 'fe-adapter[video]'") from None
    make_folder(path.parent)
    try:
        _encode(path, frames)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _encode(path: Path, frames: Array) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
