"""Small video files whose frames can be told apart: frame i is grey with level ``LEVEL * i``, its top left is white."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")
LEVEL = 8
MARK = 6  # pixels


def make_video(
    path: Path,
    num_frames: int = 12,
    size: tuple[int, int] = (48, 64),
    *,
    fps: int = 10,
    times: list[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    title: str | None = None,
    has_sound: bool = False,
    x264: dict[str, str] | None = None,
) -> Path:
    """``times`` gives each frame's own time in units of ``1 / fps`` seconds, for a variable frame rate.

    ``aspect`` is the width of a pixel to its height; ``x264`` are options of that encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if title is not None:
            file.metadata["title"] = title
        stream.codec_context.time_base = Fraction(1, fps)
        sound = file.add_stream("pcm_s16le", rate=8000) if has_sound else None
        if codec == "libx264":
            stream.options = {"crf": "1"} | (x264 or {})
        for i in range(num_frames):
            image = np.full((*size, 3), LEVEL * i, dtype=np.uint8)
            image[:MARK, :MARK] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, fps)
            file.mux(stream.encode(frame))
            if sound is not None:
                samples = np.zeros((1, 8000 // fps), np.int16)
                second = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                second.sample_rate, second.pts = 8000, i * samples.size
                file.mux(sound.encode(second))
        file.mux(stream.encode(None))
    return path


def change_size(path: Path, *sizes: tuple[int, int]) -> Path:
    """White JPEGs, three of each size, one after another."""
    with path.open("wb") as file:
        for height, width in sizes:
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = (
                height,
                width,
                "yuvj420p",
                Fraction(1, 25),
            )
            for i in range(3):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 255, np.uint8), format="rgb24")
                frame.pts = i
                file.writelines(bytes(packet) for packet in encoder.encode(frame))
            file.writelines(bytes(packet) for packet in encoder.encode(None))
    return path


def make_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def make_sound_with_cover(path: Path) -> Path:
    """An mp3 file that starts with a picture, as ID3v2.3 §4.15 stores it."""
    with av.open(str(path), "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=44100, layout="mono")
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    image = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 8, 8, "rgb24", Fraction(1, 1)
    picture = b"\0image/png\0\3\0" + b"".join(bytes(packet) for packet in encoder.encode(image))
    content = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    length = bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + length + content + path.read_bytes())
    return path


def make_empty_video(path: Path) -> Path:
    """A file that announces a video and holds not one frame."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuv420p"
        file.start_encoding()
    return path


def rotate(path: Path, clockwise: int) -> Path:
    """Ask players of an mp4 to turn its frames."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    return display_matrix(path, cos, sin, -sin, cos)


def display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Ask players of an mp4 to show (x, y) at (a x + c y, b x + d y): the track's header, ISO 14496-12 §8.3.2."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def trim(path: Path, start: int, num_frames: int, fps: int = 10) -> Path:
    """Ask players of an mp4 to show ``num_frames`` from ``start`` on: the edit list, ISO 14496-12 §8.6.6."""
    with av.open(str(path)) as file:
        ticks = round(1 / file.streams.video[0].time_base)
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    (delay,) = struct.unpack(">i", content[entry + 4 : entry + 8])  # of B-frames
    content[entry : entry + 8] = struct.pack(">Ii", 1000 * num_frames // fps, delay + ticks * start // fps)
    path.write_bytes(content)
    return path


def levels(video: torch.Tensor) -> list[int]:
    """Which frame each frame of ``(T, 3, H, W)`` is."""
    middle = video[:, :, video.shape[2] // 2, video.shape[3] // 2].float().mean(1)
    return (middle / LEVEL).round().int().tolist()


def corner(frame: torch.Tensor) -> str:
    """In which corner of ``(3, H, W)`` the white mark is."""
    m = MARK // 2
    places = {"top left": (m, m), "top right": (m, -m), "bottom left": (-m, m), "bottom right": (-m, -m)}
    return max(places, key=lambda name: frame[(slice(None), *places[name])].sum().item())
