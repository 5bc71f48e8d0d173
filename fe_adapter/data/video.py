"""Video files through PyAV: what is in them, and their frames."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fe_adapter.data.container import display_size, opened, reformatter, upright
from fe_adapter.errors import InputError

_log = logging.getLogger("fe_adapter")
VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv",
    ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
)  # fmt: skip
_SEEK_GAP = 4.0  # seconds between two wanted frames from which seeking beats decoding what lies between


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """One video file, or one folder of frames.

    Args:
        path: the file, or the folder.
        pts: ``(n,)`` int64 presentation times of the frames, ascending, in units of ``time_base``.
        time_base: seconds.
        height: of a frame as a player shows it, in pixels: upright, and its pixels square.
        width: likewise.
        is_numbered: the file has no presentation times; ``pts`` numbers the frames as they are decoded.
        files: the images of a folder of frames (`fe_adapter.data.frames`), in their order; none of a video file.
        packed: "raw" or "jpeg", how frames are kept, of a video in a pack (`fe_adapter.data.packed`); else empty.
    """

    path: str
    pts: np.ndarray
    time_base: float
    height: int
    width: int
    is_numbered: bool = False
    files: tuple[str, ...] = ()
    packed: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.pts)

    @functools.cached_property
    def timestamps(self) -> np.ndarray:
        """``(n,)`` seconds from the first frame, one for every frame; not evenly spaced at a variable frame rate."""
        return (self.pts - self.pts[0]) * self.time_base

    @functools.cached_property
    def frame_seconds(self) -> float:
        """Median time between frames, in seconds; 1/25 for a single frame."""
        return float(np.median(np.diff(self.timestamps))) if self.num_frames > 1 else 0.04

    @property
    def duration(self) -> float:
        """Seconds, the last frame's own time included."""
        return float(self.timestamps[-1]) + self.frame_seconds


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the frame times and the size of a video; one frame is decoded.

    Packets that are damaged are logged where the file does not say how many there should be; what decodes is used.

    Raises:
        InputError: there is no such file, or no whole video in it; the message says which.
    """
    path = os.fspath(path)
    with opened(path) as (container, stream):
        promised, time_base = stream.frames, stream.time_base
        if container.format.name == "avi":
            promised = 0  # its header counts frames that were dropped, too
        times = array("q")  # of the frames that are shown
        ends: dict[int, int] = {}  # of the streams, in units of their own
        num_packets = num_damaged = num_shown = 0
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                index = packet.stream.index
                ends[index] = max(ends.get(index, 0), packet.pts + (packet.duration or 0))
            if not packet.size or packet.stream.index != stream.index:
                continue
            num_packets, num_damaged = num_packets + 1, num_damaged + packet.is_corrupt
            if not packet.is_discard:
                num_shown += 1
                times.extend([] if packet.pts is None else [packet.pts])
        if num_packets - num_damaged < promised:
            there = _num_packets(path)
            if there < promised:
                raise InputError(f"{path} is truncated: {there} of {promised} frames are there")
        elif num_damaged:
            _log.warning("%s: %d of %d packets are damaged; what decodes is used", path, num_damaged, num_packets)
        seconds = max(float(ends.get(s.index, 0) * (s.time_base or 0)) for s in container.streams)
        _check_length(path, container, promised, seconds)
        pts = np.unique(np.frombuffer(times, np.int64)) if times else np.array([], np.int64)
        numbered = time_base is None or len(pts) < num_shown
    with opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or not num_shown:
            raise InputError(f"{path} has no frames")
        height, width = display_size(path, first, stream.sample_aspect_ratio)
        if numbered:
            rate = stream.average_rate or 25
            time_base, pts = 1 / rate, np.arange(1 + sum(1 for _ in container.decode(stream)))
    return VideoInfo(path, pts, float(time_base), height, width, numbered)


def read_frames(video: VideoInfo | str | os.PathLike[str], indices: Sequence[int] | None = None) -> Tensor:
    """Frames of a video as a player shows them, in RGB: turned, mirrored and stretched as the file says.

    Args:
        video: a file, or what `probe` said of it, which saves looking again.
        indices: which frames, in any order and as often as wanted; None is all of them.

    Returns:
        uint8 ``(T, 3, H, W)``, channels last in memory.

    Raises:
        InputError: as `probe`; or a frame that the file promises cannot be decoded.
        IndexError: the video has no such frame.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    every = range(info.num_frames)
    chosen = every if indices is None else [every[i] for i in indices]
    frames = dict(_images(info, sorted(set(chosen)), "SLICE"))
    stacked = np.stack([frames[i] for i in chosen])
    return rearrange(torch.from_numpy(stacked), "t h w c -> t c h w")


def frames_in_order(info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Some frames of a video one by one, in one pass over it, none of them kept.

    Args:
        info: what `probe` said of it.
        indices: ascending, none twice.

    Yields:
        Index and frame, uint8 ``(3, H, W)``, the same as of `read_frames`.

    Raises:
        InputError: a frame that the file promises cannot be decoded.
    """
    for index, image in _images(info, indices, "AUTO"):  # which is faster in a row, and slower to begin
        yield index, rearrange(torch.from_numpy(np.ascontiguousarray(image)), "h w c -> c h w")


def _images(info: VideoInfo, indices: Sequence[int], threads: str) -> Iterator[tuple[int, np.ndarray]]:
    """Index and ``(H, W, 3)`` of ascending frames, decoded by threads of one of PyAV's types."""
    wanted, to_rgb, done = info.pts[list(indices)].tolist(), reformatter(), 0
    with opened(info.path) as (container, stream):
        stream.codec_context.thread_count = torch.get_num_threads()  # one in a worker, which has neighbours
        stream.thread_type = threads
        for pts, frame in _decode(container, stream, wanted, info):
            if frame.is_corrupt:
                raise InputError(f"{info.path} is damaged at {(pts - info.pts[0]) * info.time_base:.2f} s")
            yield int(indices[done]), upright(frame, stream, info.path, (info.height, info.width), to_rgb)
            done += 1
    if done < len(wanted):
        at = (wanted[done] - info.pts[0]) * info.time_base
        raise InputError(f"{info.path} is damaged: the frame at {at:.2f} s cannot be decoded")


def check_frames(info: VideoInfo) -> None:
    """Decode every frame of a video, and keep none.

    Raises:
        InputError: a frame that the file promises cannot be decoded; the message says where.
    """
    seen = set()
    with opened(info.path) as (container, stream):
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            pts = number if info.is_numbered else frame.pts
            if frame.is_corrupt:
                raise InputError(f"{info.path} is damaged at {(pts - info.pts[0]) * info.time_base:.2f} s")
            seen.add(pts)
    missing = next((pts for pts in info.pts.tolist() if pts not in seen), None)
    if missing is not None:
        at = (missing - info.pts[0]) * info.time_base
        raise InputError(f"{info.path} is damaged: the frame at {at:.2f} s cannot be decoded")


def _decode(container: Any, stream: Any, wanted: list[int], info: VideoInfo) -> Iterator[tuple[int, Any]]:
    """The wanted frames in order, by seeking over long gaps where the file can seek."""
    gap = _SEEK_GAP / info.time_base
    position, can_seek = int(info.pts[0]), not info.is_numbered
    left = deque(wanted)
    while left:
        if can_seek and left[0] - position > gap:
            container.seek(left[0], stream=stream)
        seeked, landed = position, False
        for number, frame in enumerate(_decoded(container, stream, None if info.is_numbered else set(left))):
            position = number if info.is_numbered else frame.pts
            if can_seek and not landed and position > left[0]:
                break  # the seek went too far: this file's index is not to be trusted
            landed = True
            if position == left[0]:
                yield left.popleft(), frame
                if not left:
                    return
                if can_seek and left[0] - position > gap:
                    break  # to seek
        else:
            return
        if not landed:
            container.seek(int(info.pts[0]), stream=stream)
            can_seek, position = False, seeked


def _decoded(container: Any, stream: Any, wanted: set[int] | None) -> Iterator[Any]:
    """The frames in order; without some of those that are not ``wanted``, where that spares decoding them.

    A frame of H.264 says whether any other one refers to it (ITU-T H.264, 7.4.1: ``nal_ref_idc``). HEVC's means less.
    """
    codec = stream.codec_context
    for packet in container.demux(stream):
        if wanted is not None and codec.name == "h264":
            codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _num_packets(path: str) -> int:
    """How many whole packets are there, those as well that an edit list trims."""
    with opened(path, ignore_editlist="1") as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def _check_length(path: str, container: Any, num_promised: int, end: float) -> None:
    """Refuse files that end, in bytes or at ``end`` in seconds, before their headers say; warn where none can say."""
    kind, size = container.format.name, Path(path).stat().st_size
    if kind == "avi":
        with Path(path).open("rb") as file:
            promised = 8 + int.from_bytes(file.read(8)[4:], "little")  # the size of the RIFF chunk
        if size < promised:
            raise InputError(f"{path} is truncated: {size} of {promised} bytes are there")
    if kind == "mpegts" and all(size % length for length in (188, 192, 204)):  # of its packets
        _log.warning("%s ends within a packet: it may be truncated, and what decodes is used", path)
    if kind == "asf" and not container.duration:
        _log.warning("%s does not say how long it is: it may be truncated, and what decodes is used", path)
    is_fragmented = kind.startswith("mov") and not num_promised
    is_stated = is_fragmented or any(name in kind for name in ("matroska", "flv", "mxf"))  # or an estimate
    seconds = (container.duration or 0) / 1e6 if is_stated else 0.0
    rate = container.streams.video[0].average_rate
    if end + (1 / rate if rate else 0) < 0.99 * seconds - 0.1:  # a frame may not say how long it lasts
        raise InputError(f"{path} is truncated: {end:.1f} of {seconds:.1f} s are there")
