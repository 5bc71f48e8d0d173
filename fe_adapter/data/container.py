"""PyAV's containers: opened with errors of one line, and their frames as a player shows them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fe_adapter.errors import InputError

NEEDS_PYAV = "reading videos needs PyAV; pip install 'fe-adapter[video]'"
_MAX_SIDE = 16_384  # pixels


@contextlib.contextmanager
def opened(path: str, **options: str) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a file, any failure as an `InputError` of one line; ``options`` are FFmpeg's."""
    try:
        import av
    except ImportError:
        raise InputError(NEEDS_PYAV) from None
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path} is a folder, not a video file" if file.is_dir() else f"{path}: no such file")
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        # "file:", or a colon in the name would make a protocol of what precedes it
        with container_of(f"file:{path}", path, container_options=options) as found:
            yield found
    except (av.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} is no video, or a damaged one ({reason})") from None


@contextlib.contextmanager
def container_of(url: str, name: str, **options: Any) -> Iterator[tuple[Any, Any]]:
    import av

    with av.open(url, metadata_errors="replace", **options) as container:  # titles may be in any encoding
        pictures = av.stream.Disposition.attached_pic  # the cover of a song is a video stream, too
        videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in container.streams}))
            raise InputError(f"{name} has no video" + (f", only {kinds}" if kinds else ""))
        yield container, videos[0]


def reformatter() -> Callable[..., Any]:
    """Frames to RGB by one scaler on one thread: a scaler for every frame costs more than decoding small ones."""
    from av.video.reformatter import VideoReformatter

    return functools.partial(VideoReformatter().reformat, format="rgb24", threads=1)


def _orientation(path: str, frame: Any) -> tuple[bool, bool, bool]:
    """Whether a player exchanges rows and columns of a frame, then mirrors it left to right, then top to bottom."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # x' = a·x + c·y and y' = b·x + d·y; of a rotation by quarters and a reflection two of the four are 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        return False, a < 0, d < 0
    if b and c and not a and not d:
        return True, c < 0, b < 0
    if not any((a, b, c, d)):  # says nothing, and players take it so
        return False, False, False
    raise InputError(f"{path} asks players to turn it by no multiple of 90 degrees; turn its frames themselves first")


def display_size(path: str, frame: Any, aspect: Any) -> tuple[int, int]:
    """Height and width of ``frame`` as a player shows it, by the ``aspect`` of its pixels, width to height."""
    height, width = frame.height, max(1, round(frame.width * (aspect or 1)))
    if width > _MAX_SIDE:
        raise InputError(f"{path} asks players to stretch it to {width} pixels; its sample aspect ratio is wrong")
    return (width, height) if _orientation(path, frame)[0] else (height, width)


def upright(frame: Any, stream: Any, path: str, size: tuple[int, int], to_rgb: Callable[..., Any]) -> np.ndarray:
    """``(H, W, 3)`` uint8 of ``frame``, as a player shows it; one of another shape than ``size`` has black bars."""
    exchanged, mirrored, flipped = _orientation(path, frame)
    height, width = display_size(path, frame, stream.sample_aspect_ratio)
    if (height, width) != size:
        aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio  # which may change, too
        height, width = _fitted(display_size(path, frame, aspect), size)
    sides = (width, height) if exchanged else (height, width)
    image = to_rgb(frame, height=sides[0], width=sides[1]).to_ndarray()
    if exchanged:
        image = image.swapaxes(0, 1)
    image = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]
    if (height, width) == size:
        return image
    whole = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    whole[top : top + height, left : left + width] = image
    return whole


def _fitted(sides: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """``sides``, height and width, scaled until they just fit into ``size``."""
    scale = min(size[0] / sides[0], size[1] / sides[1])
    height, width = max(1, round(sides[0] * scale)), max(1, round(sides[1] * scale))
    is_alike = height > 0.98 * size[0] and width > 0.98 * size[1]  # 854x480 and 640x360 are one shape
    return size if is_alike else (height, width)
