"""Frames one after another: of a camera, an address or a file."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fe_adapter.data.container import NEEDS_PYAV, container_of, display_size, opened, reformatter, upright
from fe_adapter.data.video import VideoInfo, probe
from fe_adapter.errors import InputError


def is_live(source: str) -> bool:
    """Whether ``source`` is no file, but a camera (its number, or ``/dev/video…``) or an address."""
    return source.isdecimal() or source.startswith("/dev/video") or "://" in source


def without_password(text: str) -> str:
    """``text``, and in the addresses in it neither user nor password: ``rtsp://me:secret@host`` is ``rtsp://host``."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def stream_frames(source: str, *, timeout: float = 10.0) -> Iterator[tuple[float, Tensor]]:
    """The frames of a file, a camera or an address one after another, none of them kept.

    Args:
        source: a file; the number of a camera; or an address that FFmpeg knows, such as ``rtsp://…``.
        timeout: seconds to wait for a camera or an address.

    Yields:
        Seconds since the first frame; and the frame as a player shows it, uint8 ``(3, H, W)``. One of another shape
        than the first is fitted into it.

    Raises:
        InputError: as `probe`; or the camera or address cannot be opened, or gives no frame any more.
    """
    live, to_rgb, start = is_live(source), reformatter(), 0.0
    info = None if live else probe(source)
    with _live(source, timeout) if live else opened(source) as (container, stream):
        stream.thread_type = "SLICE" if live else "AUTO"  # threads by frames hold some of them back
        for number, frame in enumerate(container.decode(stream)):
            if info is None:
                size = display_size(source, frame, stream.sample_aspect_ratio)
                pts, start = np.array([frame.pts or 0], np.int64), time.monotonic()
                info = VideoInfo(source, pts, float(stream.time_base or 0), *size)
            if frame.is_corrupt:
                raise InputError(f"{source} is damaged after {number} frames")
            if info.is_numbered:
                seconds = number * info.time_base
            elif frame.pts is None:
                seconds = time.monotonic() - start
            else:
                seconds = float((frame.pts - info.pts[0]) * info.time_base)
            image = upright(frame, stream, source, (info.height, info.width), to_rgb)
            yield seconds, rearrange(torch.from_numpy(image.copy()), "h w c -> c h w")  # in memory as of `read_frames`
    if live and "://" not in source:
        raise InputError(f"the camera {source} gives no frames any more")


@contextlib.contextmanager
def _live(source: str, timeout: float) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a camera or an address, any failure as an `InputError` of one line."""
    try:
        import av
    except ImportError:
        raise InputError(NEEDS_PYAV) from None
    device, kind = source, None
    if "://" not in source:
        kind = {"linux": "v4l2", "darwin": "avfoundation"}.get(sys.platform)
        if kind is None:
            raise InputError(f"cameras are read on Linux and macOS; give the address of a stream, not {source!r}")
        device = f"/dev/video{source}" if kind == "v4l2" and source.isdecimal() else source
    try:
        with container_of(device, source, format=kind, timeout=timeout) as found:
            yield found
    except (av.error.ExitError, av.error.TimeoutError):
        raise InputError(f"{source} has given no frame for {timeout:g} s") from None
    except (av.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source} cannot be read, or not any more ({reason})") from None
