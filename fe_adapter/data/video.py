"""Video files through PyAV: what is in them, and their frames."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fe_adapter.errors import InputError

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
_SEEK_GAP = 4.0  # seconds between two wanted frames from which seeking beats decoding what lies between


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """One video file.

    Args:
        path: the file.
        pts: ``(n,)`` int64 presentation times of the frames, ascending, in units of ``time_base``.
        time_base: seconds.
        height: of the upright frame, in pixels.
        width: of the upright frame, in pixels.
        is_numbered: the file has no presentation times; ``pts`` numbers the frames as they are decoded.
    """

    path: str
    pts: np.ndarray
    time_base: float
    height: int
    width: int
    is_numbered: bool = False

    @property
    def num_frames(self) -> int:
        return len(self.pts)

    @property
    def timestamps(self) -> np.ndarray:
        """``(n,)`` seconds from the first frame, one for every frame; not evenly spaced at a variable frame rate."""
        return (self.pts - self.pts[0]) * self.time_base

    @property
    def frame_seconds(self) -> float:
        """Median time between frames, in seconds; 1/25 for a single frame."""
        return float(np.median(np.diff(self.timestamps))) if self.num_frames > 1 else 0.04

    @property
    def duration(self) -> float:
        """Seconds, the last frame's own time included."""
        return float(self.timestamps[-1]) + self.frame_seconds


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the frame times and the size of a video; one frame is decoded.

    Raises:
        InputError: there is no such file, or no whole video in it; the message says which.
    """
    path = os.fspath(path)
    with _opened(path) as (container, stream):
        promised, time_base = stream.frames, stream.time_base
        packets = [packet for packet in container.demux(stream) if packet.size]
        if container.format.name == "avi":
            promised = 0  # its header counts frames that were dropped, too
        if any(packet.is_corrupt for packet in packets) or len(packets) < promised:
            raise InputError(f"{path} is truncated: {len(packets)} of {promised} frames are there")
        _check_length(path, container, packets)
        shown = [packet.pts for packet in packets if not packet.is_discard]
        numbered = time_base is None or None in shown or len(set(shown)) < len(shown)
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or not shown:
            raise InputError(f"{path} has no frames")
        upright = first.width, first.height
        if first.rotation % 180:
            upright = upright[::-1]
        if numbered:
            rate = stream.average_rate or 25
            time_base, pts = 1 / rate, np.arange(1 + sum(1 for _ in container.decode(stream)))
        else:
            pts = np.array(sorted(shown), dtype=np.int64)
    return VideoInfo(path, pts, float(time_base), upright[1], upright[0], numbered)


def read_frames(video: VideoInfo | str | os.PathLike[str], indices: Sequence[int] | None = None) -> Tensor:
    """Frames of a video, upright, in RGB.

    Args:
        video: a file, or what `probe` said of it, which saves looking again.
        indices: which frames, in any order and as often as wanted; None is all of them.

    Returns:
        uint8 ``(T, 3, H, W)``.

    Raises:
        InputError: as `probe`; or a frame that the file promises cannot be decoded.
        IndexError: the video has no such frame.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    chosen = range(info.num_frames) if indices is None else indices
    wanted = sorted({int(info.pts[i]) for i in chosen})
    frames: dict[int, np.ndarray] = {}
    to_rgb = _reformatter()
    with _opened(info.path) as (container, stream):
        for pts, frame in _decode(container, stream, wanted, info):
            if frame.is_corrupt:
                raise InputError(f"{info.path} is damaged at {(pts - info.pts[0]) * info.time_base:.2f} s")
            frames[pts] = np.rot90(to_rgb(frame).to_ndarray(), frame.rotation // 90)
    if len(frames) < len(wanted):
        missing = next(pts for pts in wanted if pts not in frames)
        at = (missing - info.pts[0]) * info.time_base
        raise InputError(f"{info.path} is damaged: the frame at {at:.2f} s cannot be decoded")
    stacked = np.stack([frames[int(info.pts[i])] for i in chosen])
    return rearrange(torch.from_numpy(stacked), "t h w c -> t c h w").contiguous()


def _decode(container: Any, stream: Any, wanted: list[int], info: VideoInfo) -> Iterator[tuple[int, Any]]:
    """The wanted frames in order, by seeking over long gaps where the file can seek."""
    gap = _SEEK_GAP / info.time_base
    left, position, can_seek = list(wanted), int(info.pts[0]), not info.is_numbered
    while left:
        if can_seek and left[0] - position > gap:
            container.seek(left[0], stream=stream)
        seeked, landed = position, False
        for number, frame in enumerate(container.decode(stream)):
            position = number if info.is_numbered else frame.pts
            if can_seek and not landed and position > left[0]:
                break  # the seek went too far: this file's index is not to be trusted
            landed = True
            if position == left[0]:
                yield left.pop(0), frame
                if not left:
                    return
                if can_seek and left[0] - position > gap:
                    break  # to seek
        else:
            return
        if not landed:
            container.seek(int(info.pts[0]), stream=stream)
            can_seek, position = False, seeked


def _check_length(path: str, container: Any, packets: list[Any]) -> None:
    """Refuse AVI and Matroska files that end before their headers say; other lengths are estimates."""
    if container.format.name == "avi":
        with Path(path).open("rb") as file:
            promised = 8 + int.from_bytes(file.read(8)[4:], "little")  # the size of the RIFF chunk
        size = Path(path).stat().st_size
        if size < promised:
            raise InputError(f"{path} is truncated: {size} of {promised} bytes are there")
    if "matroska" not in container.format.name or container.streams.audio or not container.duration:
        return
    timed = [packet for packet in packets if packet.pts is not None]
    end = max((float((p.pts + (p.duration or 0)) * p.time_base) for p in timed), default=0.0)
    seconds = container.duration / 1e6
    if end < 0.99 * seconds - 0.1:
        raise InputError(f"{path} is truncated: {end:.1f} of {seconds:.1f} s are there")


def _reformatter() -> Callable[[Any], Any]:
    """Frames to RGB by one scaler on one thread: a scaler for every frame costs more than decoding small ones."""
    from av.video.reformatter import VideoReformatter

    return functools.partial(VideoReformatter().reformat, format="rgb24", threads=1)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a file, any failure as an `InputError` of one line."""
    try:
        import av
    except ImportError:
        raise InputError("reading videos needs PyAV; pip install 'fe-adapter[video]'") from None
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path} is a folder, not a video file" if file.is_dir() else f"{path}: no such file")
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        with av.open(f"file:{path}") as container:  # or a colon in the name would make a protocol of what precedes it
            pictures = av.stream.Disposition.attached_pic  # the cover of a song is a video stream, too
            videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
            if not videos:
                raise InputError(f"{path} has no video{_kinds(container)}")
            yield container, videos[0]
    except (av.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} is no video, or a damaged one ({reason})") from None


def _kinds(container: Any) -> str:
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return f", only {', '.join(kinds)}" if kinds else ""
