"""Clips as they are on disk, a video file, a folder of frames or a part of a pack: what is in them, their frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fe_adapter.data import frames, packed, video
from fe_adapter.data.video import VideoInfo

_AT_A_TIME = 8  # frames of a folder or a pack


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """The frame times and the size of a video file (`video.probe`), of a folder of frames or of a packed video.

    Raises:
        InputError: there is no such file or folder, or nothing whole in it; the message says which.
    """
    found = packed.probe_packed(os.fspath(path))
    if found is not None:
        return found
    return frames.probe_frames(path) if Path(path).is_dir() else video.probe(path)


def read_frames(clip: VideoInfo | str | os.PathLike[str], indices: Sequence[int] | None = None) -> Tensor:
    """Frames as a player shows them, in RGB.

    Args:
        clip: a video file or a folder of frames, or what `probe` said of it, which saves looking again.
        indices: which frames, in any order and as often as wanted; None is all of them.

    Returns:
        uint8 ``(T, 3, H, W)``.

    Raises:
        InputError: as `probe`; or a frame that is promised cannot be decoded.
        IndexError: there is no such frame.
    """
    info = clip if isinstance(clip, VideoInfo) else probe(clip)
    if info.packed:
        return packed.read_packed(info, indices)
    return frames.read_folder(info, indices) if info.files else video.read_frames(info, indices)


def frames_in_order(info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Some frames one by one, in one pass, few of them in memory at a time.

    Args:
        info: what `probe` said of the clip.
        indices: ascending, none twice.

    Yields:
        Index and frame, uint8 ``(3, H, W)``, the same as of `read_frames`.

    Raises:
        InputError: a frame that is promised cannot be decoded.
    """
    if not info.files and not info.packed:
        yield from video.frames_in_order(info, indices)
        return
    for i in range(0, len(indices), _AT_A_TIME):
        part = [int(index) for index in indices[i : i + _AT_A_TIME]]
        yield from zip(part, read_frames(info, part), strict=True)


def check_frames(info: VideoInfo) -> None:
    """Decode every frame, and keep none.

    Raises:
        InputError: a frame that is promised cannot be decoded; the message says where.
    """
    if info.packed:
        for i in range(info.num_frames):
            packed.read_packed(info, [i])
    elif info.files:
        frames.check_folder_frames(info)
    else:
        video.check_frames(info)
