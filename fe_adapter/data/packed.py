"""Packed data sets: every frame decoded once and kept small, in checksummed shards that are read by place.

A folder holds ``pack.json`` (what it is of, its clips by fold and split, and what is in every video) and safetensors
shards. Of video i a shard has ``i.bytes``, the frames one after the other, as pixels or as JPEG files; ``i.ends``,
where each of them ends; and ``i.sums``, the CRC-32 of each, compared whenever a frame is read.
"""

from __future__ import annotations

import functools
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fe_adapter.data.listing import Clip
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import read_as

INDEX = "pack.json"
CODECS = ("jpeg", "raw")


class PackedVideo(BaseModel):
    """What is in one video of a pack."""

    model_config = ConfigDict(strict=True)

    path: str  # where it came from
    pts: list[int] = Field(min_length=1)
    time_base: float = Field(gt=0)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    is_numbered: bool


class PackedClip(BaseModel):
    """A clip: a video's place in the list, its class, and what else the data says."""

    model_config = ConfigDict(strict=True)

    video: int = Field(ge=0)
    class_name: str
    subject: str | None = None
    votes: list[tuple[str, float]] = []
    window: tuple[float, float] | None = None


class Pack(BaseModel):
    """All of ``pack.json``."""

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    identity: dict[str, Any]
    codec: Literal["jpeg", "raw"]
    class_names: list[str] | None
    layout: str | None
    cutting: dict[str, Any] = {}
    split_names: dict[str, str] = {}
    clips: dict[str, dict[str, list[PackedClip]]]  # by fold and split, "" where there are none
    videos: list[PackedVideo] = []
    shards: list[list[int]] = []  # the videos of each


def is_pack(path: Path) -> bool:
    return (path / INDEX).is_file()


def file_of(path: str) -> Path:
    """The file whose time says whether a clip has changed: of a packed one, the pack's index."""
    parent = Path(path).parent
    return parent / INDEX if is_pack(parent) and not Path(path).exists() else Path(path)


def read_pack(folder: Path) -> Pack:
    """What a pack says of itself.

    Raises:
        InputError: it is damaged, or not whole yet; a shard is lost or cut off.
    """
    pack = read_as(Pack, folder / INDEX, "is no index of a pack")
    count = 1 + max((clip.video for fold in pack.clips.values() for own in fold.values() for clip in own), default=-1)
    done = sum(map(len, pack.shards))
    if done < count or len(pack.videos) < count:
        raise InputError(f"{folder} is not whole: {done} of {count} videos are packed; run the same data pack again")
    for number in range(len(pack.shards)):
        open_shard(folder / shard_name(number))
    return pack


def packed_clips(folder: Path, pack: Pack, fold: int | None) -> dict[str | None, list[Clip]]:
    """The clips of a fold by split; a clip's path is the number of its video in the folder, in the order of the names
    before packing, so that what is held out of them is the same.

    Raises:
        InputError: there is no such fold.
    """
    folds = ", ".join(sorted(pack.clips))
    key = "" if fold is None else str(fold)
    if key not in pack.clips:
        has = f"has the folds {folds}; give one by --fold" if fold is None else f"has no fold {fold}"
        raise InputError(f"{folder} {has}" if folds else f"{folder} has no folds; leave --fold out")
    return {
        split or None: [
            Clip(str(folder / f"{clip.video:08d}"), clip.class_name, clip.subject, tuple(clip.votes), clip.window)
            for clip in clips
        ]
        for split, clips in pack.clips[key].items()
    }


def probe_packed(path: str) -> VideoInfo | None:
    """What is in a packed video; None where ``path`` is none."""
    folder, _, number = path.rpartition("/")
    if not number.isdecimal() or not is_pack(Path(folder)):
        return None
    pack = _index(folder, os.stat(os.path.join(folder, INDEX)).st_mtime_ns)  # noqa: PTH116, PTH118
    video = pack.videos[int(number)]
    pts = np.array(video.pts, dtype=np.int64)
    return VideoInfo(path, pts, video.time_base, video.height, video.width, video.is_numbered, packed=pack.codec)


def read_packed(info: VideoInfo, indices: Sequence[int] | None = None) -> Tensor:
    """Frames of a packed video, uint8 ``(T, 3, H, W)``.

    Raises:
        InputError: the shard is cut off, or a frame is not what was written.
        IndexError: there is no such frame.
    """
    folder, _, number = info.path.rpartition("/")
    number = str(int(number))
    pack = _index(folder, os.stat(os.path.join(folder, INDEX)).st_mtime_ns)  # noqa: PTH116, PTH118
    shard = next(i for i, videos in enumerate(pack.shards) if int(number) in videos)
    file = os.path.join(folder, shard_name(shard))  # noqa: PTH118
    chosen = range(info.num_frames) if indices is None else indices
    frames: dict[int, np.ndarray] = {}
    try:
        with open_shard(file) as content:
            ends, sums = (content.get_tensor(f"{number}.{name}") for name in ("ends", "sums"))
            own = content.get_slice(f"{number}.bytes")
            for i in sorted({range(info.num_frames)[i] for i in chosen}):
                data = own[int(ends[i - 1]) if i else 0 : int(ends[i])].tobytes()
                if zlib.crc32(data) != int(sums[i]):
                    raise InputError(f"{file} is damaged: frame {i} of video {number} is not what was packed")
                frames[i] = decode(data, info)
    except SafetensorError as error:
        raise InputError(f"{file} is no shard of this pack: {error}; pack again") from None
    whole = np.stack([frames[range(info.num_frames)[i]] for i in chosen])
    return rearrange(torch.from_numpy(whole), "t h w c -> t c h w").contiguous()


def open_shard(file: str | os.PathLike[str]) -> Any:
    """A shard, without its frames.

    Raises:
        InputError: it is not there, or not as long as its header says.
    """
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is cut off or no shard of a pack: {error}; pack again") from None


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def encode(frame: np.ndarray, codec: str, quality: int) -> bytes:
    """The bytes of a frame ``(H, W, 3)`` uint8."""
    if codec == "raw":
        return frame.tobytes()
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()


def decode(data: bytes, info: VideoInfo) -> np.ndarray:
    """The frame ``(H, W, 3)`` of bytes."""
    if info.packed == "raw":
        return np.frombuffer(data, np.uint8).reshape(info.height, info.width, 3)
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@functools.lru_cache(maxsize=4)
def _index(folder: str, changed: int) -> Pack:
    """As `read_pack`, once for every time that it ``changed``."""
    return read_pack(Path(folder))
