"""Video files through PyAV: what is in them, and their frames."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fe_adapter.errors import InputError

_log = logging.getLogger("fe_adapter")
VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv",
    ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
)  # fmt: skip
_NEEDS_PYAV = "reading videos needs PyAV; pip install 'fe-adapter[video]'"
_MAX_SIDE = 16_384  # pixels
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

    Packets that are damaged are logged where the file does not say how many there should be; what decodes is used.

    Raises:
        InputError: there is no such file, or no whole video in it; the message says which.
    """
    path = os.fspath(path)
    with _opened(path) as (container, stream):
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
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or not num_shown:
            raise InputError(f"{path} has no frames")
        height, width = _display_size(path, first, stream.sample_aspect_ratio)
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
    chosen = range(info.num_frames) if indices is None else indices
    wanted = sorted({int(info.pts[i]) for i in chosen})
    frames: dict[int, np.ndarray] = {}
    to_rgb = _reformatter()
    with _opened(info.path) as (container, stream):
        stream.codec_context.thread_count = torch.get_num_threads()  # one in a worker, which has neighbours
        for pts, frame in _decode(container, stream, wanted, info):
            if frame.is_corrupt:
                raise InputError(f"{info.path} is damaged at {(pts - info.pts[0]) * info.time_base:.2f} s")
            frames[pts] = _upright(frame, stream, info, to_rgb)
    if len(frames) < len(wanted):
        missing = next(pts for pts in wanted if pts not in frames)
        at = (missing - info.pts[0]) * info.time_base
        raise InputError(f"{info.path} is damaged: the frame at {at:.2f} s cannot be decoded")
    stacked = np.stack([frames[int(info.pts[i])] for i in chosen])
    return rearrange(torch.from_numpy(stacked), "t h w c -> t c h w")


def is_live(source: str) -> bool:
    """Whether ``source`` is no file, but a camera (its number, or ``/dev/video…``) or an address."""
    return source.isdecimal() or source.startswith("/dev/video") or "://" in source


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
    live, to_rgb, start = is_live(source), _reformatter(), 0.0
    info = None if live else probe(source)
    with _live(source, timeout) if live else _opened(source) as (container, stream):
        stream.thread_type = "SLICE" if live else "AUTO"  # threads by frames hold some of them back
        for number, frame in enumerate(container.decode(stream)):
            if info is None:
                size = _display_size(source, frame, stream.sample_aspect_ratio)
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
            image = _upright(frame, stream, info, to_rgb)
            yield seconds, rearrange(torch.from_numpy(image.copy()), "h w c -> c h w")  # in memory as of `read_frames`
    if live and "://" not in source:
        raise InputError(f"the camera {source} gives no frames any more")


def check_frames(info: VideoInfo) -> None:
    """Decode every frame of a video, and keep none.

    Raises:
        InputError: a frame that the file promises cannot be decoded; the message says where.
    """
    seen = set()
    with _opened(info.path) as (container, stream):
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
    left, position, can_seek = list(wanted), int(info.pts[0]), not info.is_numbered
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
    with _opened(path, ignore_editlist="1") as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


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


def _display_size(path: str, frame: Any, aspect: Any) -> tuple[int, int]:
    """Height and width of ``frame`` as a player shows it, by the ``aspect`` of its pixels, width to height."""
    height, width = frame.height, max(1, round(frame.width * (aspect or 1)))
    if width > _MAX_SIDE:
        raise InputError(f"{path} asks players to stretch it to {width} pixels; its sample aspect ratio is wrong")
    return (width, height) if _orientation(path, frame)[0] else (height, width)


def _upright(frame: Any, stream: Any, info: VideoInfo, to_rgb: Callable[..., Any]) -> np.ndarray:
    """``(H, W, 3)`` uint8 of ``frame``, as a player shows it; one of another shape than the first has black bars."""
    exchanged, mirrored, flipped = _orientation(info.path, frame)
    height, width = _display_size(info.path, frame, stream.sample_aspect_ratio)
    if (height, width) != (info.height, info.width):
        aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio  # which may change, too
        height, width = _fitted(_display_size(info.path, frame, aspect), info)
    sides = (width, height) if exchanged else (height, width)
    image = to_rgb(frame, height=sides[0], width=sides[1]).to_ndarray()
    if exchanged:
        image = image.swapaxes(0, 1)
    image = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]
    if (height, width) == (info.height, info.width):
        return image
    whole = np.zeros((info.height, info.width, 3), np.uint8)
    top, left = (info.height - height) // 2, (info.width - width) // 2
    whole[top : top + height, left : left + width] = image
    return whole


def _fitted(size: tuple[int, int], info: VideoInfo) -> tuple[int, int]:
    """``size``, height and width, scaled until it just fits into the frame of a video."""
    scale = min(info.height / size[0], info.width / size[1])
    height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    is_alike = height > 0.98 * info.height and width > 0.98 * info.width  # 854x480 and 640x360 are one shape
    return (info.height, info.width) if is_alike else (height, width)


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


def _reformatter() -> Callable[..., Any]:
    """Frames to RGB by one scaler on one thread: a scaler for every frame costs more than decoding small ones."""
    from av.video.reformatter import VideoReformatter

    return functools.partial(VideoReformatter().reformat, format="rgb24", threads=1)


@contextlib.contextmanager
def _live(source: str, timeout: float) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a camera or an address, any failure as an `InputError` of one line."""
    try:
        import av
    except ImportError:
        raise InputError(_NEEDS_PYAV) from None
    device, kind = source, None
    if "://" not in source:
        kind = {"linux": "v4l2", "darwin": "avfoundation"}.get(sys.platform)
        if kind is None:
            raise InputError(f"cameras are read on Linux and macOS; give the address of a stream, not {source!r}")
        device = f"/dev/video{source}" if kind == "v4l2" and source.isdecimal() else source
    try:
        with _container(device, source, format=kind, timeout=timeout) as opened:
            yield opened
    except (av.error.ExitError, av.error.TimeoutError):
        raise InputError(f"{source} has given no frame for {timeout:g} s") from None
    except (av.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source} cannot be read, or not any more ({reason})") from None


@contextlib.contextmanager
def _opened(path: str, **options: str) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a file, any failure as an `InputError` of one line; ``options`` are FFmpeg's."""
    try:
        import av
    except ImportError:
        raise InputError(_NEEDS_PYAV) from None
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path} is a folder, not a video file" if file.is_dir() else f"{path}: no such file")
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        # "file:", or a colon in the name would make a protocol of what precedes it
        with _container(f"file:{path}", path, container_options=options) as opened:
            yield opened
    except (av.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} is no video, or a damaged one ({reason})") from None


@contextlib.contextmanager
def _container(url: str, name: str, **options: Any) -> Iterator[tuple[Any, Any]]:
    import av

    with av.open(url, metadata_errors="replace", **options) as container:  # titles may be in any encoding
        pictures = av.stream.Disposition.attached_pic  # the cover of a song is a video stream, too
        videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in container.streams}))
            raise InputError(f"{name} has no video" + (f", only {kinds}" if kinds else ""))
        yield container, videos[0]
