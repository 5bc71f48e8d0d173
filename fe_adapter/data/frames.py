"""Folders of frames in the place of video files: JPEG, PNG and the like, through Pillow."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import get_worker_info

from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError, first_line

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FRAME_RATE = 25  # frames per second; a folder does not say
_MODES = ("1", "CMYK", "L", "LA", "P", "RGB", "RGBA", "YCbCr")  # of eight bits a channel, which Pillow converts
_MOST_STRETCHED = 1.1  # of a frame to the shape of the first one: crops by a face detector differ by less
Size = tuple[int, int]  # height and width


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts names as people do: numbers in them by value, so that ``2.jpg`` is before ``10.jpg``."""
    parts = re.split("([0-9]+)", name)  # every second one is a number
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def holds_frames(folder: str | os.PathLike[str]) -> bool:
    """Whether there are images in ``folder`` itself."""
    return bool(frame_names(folder))


def frame_names(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the images in ``folder``, in the order of their numbers; hidden files are left out.

    Raises:
        InputError: the folder cannot be read, or holds a frame in two formats.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.lower().endswith(FRAME_SUFFIXES)]
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    names = sorted((name for name in found if not name.startswith(".")), key=natural_key)
    by_stem: dict[str, str] = {}
    for name in names:
        other = by_stem.setdefault(name.rpartition(".")[0], name)
        if other != name:
            raise InputError(f"{folder} holds a frame twice, as {other} and as {name}")
    return names


def probe_frames(path: str | os.PathLike[str]) -> VideoInfo:
    """What is in a folder of frames: their number and order, and the size of the first one, whose header is read.

    Raises:
        InputError: there are no frames in it, or the first one is no image.
    """
    path = os.fspath(path)
    names = frame_names(path)
    if not names:
        raise InputError(f"{path} is a folder, not a video file, and holds no frames ({' '.join(FRAME_SUFFIXES)})")
    files = tuple(os.path.join(path, name) for name in names)  # noqa: PTH118 (paths are strings here)
    height, width = frame_size(files[0])
    return VideoInfo(path, np.arange(len(files)), 1 / FRAME_RATE, height, width, is_numbered=True, files=files)


def frame_size(file: str) -> tuple[int, int]:
    """Height and width of an image as a viewer shows it; its header is read.

    Raises:
        InputError: it is no image, or one of more than eight bits a channel.
    """
    with _opened(file) as image:
        is_turned = image.getexif().get(274, 1) >= 5  # the tag Orientation: rows and columns exchanged
        return image.size if is_turned else image.size[::-1]


def are_alike(size: Size, first: Size) -> bool:
    """Whether a frame has nearly the shape of the first one, to which it is scaled."""
    stretch = size[1] * first[0] / (size[0] * first[1])
    return 1 / _MOST_STRETCHED <= stretch <= _MOST_STRETCHED


def read_folder(info: VideoInfo, indices: Sequence[int] | None = None) -> Tensor:
    """Frames of a folder as uint8 ``(T, 3, H, W)`` in RGB, upright; several at a time.

    Frames of other sizes than the first one's are scaled to it, as long as their shape is nearly the same.

    Raises:
        InputError: a frame is damaged, no image, or of another shape.
        IndexError: there is no such frame.
    """
    chosen = list(range(info.num_frames) if indices is None else indices)
    wanted = sorted(set(chosen))
    files = [info.files[i] for i in wanted]
    size = info.height, info.width
    if len(files) > 1 and get_worker_info() is None:
        with ThreadPoolExecutor(min(4, len(files))) as pool:  # decoding leaves Python's lock to the others
            images = list(pool.map(lambda file: _read(file, size), files))
    else:  # the processes of a loader are at work side by side already
        images = [_read(file, size) for file in files]
    frames = dict(zip(wanted, images, strict=True))
    return rearrange(torch.from_numpy(np.stack([frames[i] for i in chosen])), "t h w c -> t c h w").contiguous()


def check_folder_frames(info: VideoInfo) -> None:
    """Decode every frame of a folder, and keep none.

    Raises:
        InputError: as `read_folder`.
    """
    for file in info.files:
        _read(file, (info.height, info.width))


def _read(file: str, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, 3)`` uint8 of an image, of that size."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        height, width = size
        if not are_alike((upright.height, upright.width), size):
            raise InputError(
                f"{file} is {upright.height}x{upright.width} where the folder's first frame is {height}x{width}; "
                "frames of a clip have one shape"
            )
        if upright.size != (width, height):
            upright = upright.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(upright)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    """A Pillow image of eight bits a channel, any failure as an `InputError` of one line."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("reading frames needs Pillow; pip install 'fe-adapter[video]'") from None
    try:
        with Image.open(file) as image:
            if image.mode not in _MODES:
                raise InputError(f"{file} has more than eight bits a channel ({image.mode}); convert it first")
            yield image
    except InputError:
        raise
    except UnidentifiedImageError:
        what = "empty" if Path(file).stat().st_size == 0 else "no image, or a damaged one"
        raise InputError(f"{file} is {what}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's of damaged files
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file} is no image, or a damaged one ({reason})") from None
