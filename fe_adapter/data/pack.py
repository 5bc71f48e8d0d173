"""Make a pack of a data set (`fe_adapter.data.packed`): decode once, resize, and keep."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.numpy import save as to_bytes
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.checks import check_choice, check_count
from fe_adapter.data.annotations import Cutting
from fe_adapter.data.layouts import Where, find_layout
from fe_adapter.data.packed import (
    CODECS,
    INDEX,
    Pack,
    PackedClip,
    PackedVideo,
    encode,
    is_pack,
    open_shard,
    read_pack,
    shard_name,
)
from fe_adapter.data.reading import probe, read_frames
from fe_adapter.data.sources import Source, read_source
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, make_folder, only_one, read_as, write_json

_SHARD_BYTES = 2**28
_SAMPLED = 16  # videos, by whose middle frames the size of JPEG is predicted


def pack_data(
    data: str | os.PathLike[str],
    out: Path,
    *,
    fold: int | None = None,
    where: Where | None = None,
    cutting: Cutting | None = None,
    val_fraction: float = 0.2,
    soft_labels: bool = False,
    size: int | None = 256,
    codec: str = "jpeg",
    quality: int = 95,
    max_frames: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pack:
    """Decode every video of ``data`` once and keep its frames in ``out``, or go on with what is there.

    Args:
        data: as of `open_dataset`.
        out: folder, made if need be; `open_dataset` takes it in the place of the data.
        fold: of a published data set; None is all of them, whose videos are packed once.
        where: as of `open_dataset`, like ``cutting``, ``val_fraction`` and ``soft_labels``.
        size: pixels of the shorter side; smaller frames are kept as they are, and None keeps all so.
        codec: "jpeg", or "raw" pixels, which lose nothing and take ten times the room.
        quality: of JPEG, from 1 to 100.
        max_frames: of a video, evenly spaced; None is all.
        say: told what size to expect.

    Raises:
        InputError: as `open_dataset`; unreadable videos; the disk is too small; ``out`` is a pack of something else,
            or where the data are.
    """
    check_choice("codec", codec, CODECS)
    check_count("quality", quality, 1, 100)
    for name, value in (("size", size), ("max_frames", max_frames)):
        if value is not None:
            check_count(name, value, 1, 2**14)
    found = find_layout(data)
    folds = (fold,) if found is None or fold is not None else found[0].folds()
    options: dict[str, Any] = {"where": where, "cutting": cutting, "val_fraction": val_fraction}
    sources = {k: read_source(data, fold=k, soft_labels=soft_labels, **options) for k in folds}
    if found is None and is_pack(Path(data)):
        raise InputError(f"{data} is a pack already")
    if out.resolve() == (Path(data) if found is None else found[1]).resolve():
        raise InputError(f"{out} holds the data themselves; choose another folder for the pack")
    every = [clip for source in sources.values() for clips in source.by_split.values() for clip in clips]
    paths = sorted({clip.path for clip in every})
    if not paths:
        raise InputError(f"{data} holds no videos")
    infos = _probed(paths, os.fspath(data))
    make_folder(out)
    with only_one(out):
        settings = {"size": size, "codec": codec, "quality": quality, "max_frames": max_frames}
        pack = _begun(out, sources, paths, {"files": _digest(infos), **settings})
        done = sum(map(len, pack.shards))
        frames = {path: _chosen(infos[path], max_frames) for path in paths[done:]}
        sizes = _predicted(infos, frames, size, codec, quality)
        _check_space(out, sum(sizes.values()), say)
        for numbers in track(
            list(_shards(paths, done, sizes)),
            "Packing",
            transient=True,
            console=Console(stderr=True),
            disable=not sizes,
        ):
            content: dict[str, np.ndarray] = {}
            for number in numbers:
                path = paths[number]
                packed, tensors = _packed(infos[path], frames[path], size, codec, quality)
                pack.videos.append(packed)
                content |= {f"{number}.{name}": tensor for name, tensor in tensors.items()}
            with atomic_write(out / shard_name(len(pack.shards))) as file:
                file.write(to_bytes(content))
            pack.shards.append(numbers)
            write_json(out / INDEX, pack.model_dump())  # after each: an interrupted run goes on from here
    return read_pack(out)


def _probed(paths: Sequence[str], source: str) -> dict[str, VideoInfo]:
    def look(path: str) -> VideoInfo | str:
        try:
            return probe(path)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(paths, pool.map(look, paths), strict=True))
    wrong = [reason for reason in found.values() if isinstance(reason, str)]
    if wrong:
        raise InputError(
            f"{source} has {len(wrong)} unreadable videos: {wrong[0]}; fe-adapter data check names them all"
        )
    return {path: info for path, info in found.items() if isinstance(info, VideoInfo)}


def _digest(infos: dict[str, VideoInfo]) -> str:
    """A hash of which files there are, and whether they changed, as far as their sizes and times tell."""
    whole = hashlib.blake2b(digest_size=16)
    for path, info in infos.items():
        status = [os.stat(file) for file in (path, *info.files[:1], *info.files[-1:])]  # noqa: PTH116
        whole.update(f"{path} {info.num_frames} {[(s.st_size, s.st_mtime_ns) for s in status]}".encode())
    return whole.hexdigest()


def _begun(out: Path, sources: dict[int | None, Source], paths: list[str], identity: dict[str, Any]) -> Pack:
    """The pack in ``out`` as far as it goes, or a new one."""
    places = {path: i for i, path in enumerate(paths)}
    first = next(iter(sources.values()))
    clips = {
        "" if k is None else str(k): {
            split or "": [
                PackedClip(
                    video=places[clip.path],
                    class_name=clip.class_name,
                    subject=clip.subject,
                    votes=list(clip.votes),
                    window=clip.window,
                )
                for clip in own
            ]
            for split, own in source.by_split.items()
        }
        for k, source in sources.items()
    }
    new = Pack(
        identity=identity,
        codec=identity["codec"],
        class_names=None if first.class_names is None else list(first.class_names),
        layout=first.layout,
        cutting=first.cutting,
        split_names=first.split_names,
        clips=clips,
    )
    if not is_pack(out):
        return new
    there = read_as(Pack, out / INDEX, "is no index of a pack")
    for key, value in identity.items():
        if there.identity.get(key) != value:
            raise InputError(f"{out} is a pack of other {key}; choose another folder, or remove it")
    if there.clips != clips:
        raise InputError(f"{out} is a pack of other clips; choose another folder, or remove it")
    for number in range(len(there.shards)):
        try:
            open_shard(out / shard_name(number))
        except InputError:  # it is made anew, and so are those behind it
            there.shards = there.shards[:number]
            there.videos = there.videos[: sum(map(len, there.shards))]
            break
    return there


def _chosen(info: VideoInfo, most: int | None) -> list[int]:
    if most is None or info.num_frames <= most:
        return list(range(info.num_frames))
    return sorted(set(np.linspace(0, info.num_frames - 1, most).round().astype(int).tolist()))


def _fitted(info: VideoInfo, size: int | None) -> tuple[int, int]:
    """Height and width, the shorter side ``size`` or less."""
    scale = min(1.0, (size or min(info.height, info.width)) / min(info.height, info.width))
    return max(1, round(info.height * scale)), max(1, round(info.width * scale))


def _predicted(
    infos: dict[str, VideoInfo], frames: dict[str, list[int]], size: int | None, codec: str, quality: int
) -> dict[str, int]:
    """Bytes of every video that is yet to be packed: of pixels exactly, of JPEG by a sample of frames."""
    pixels = {path: 3 * len(own) * int(np.prod(_fitted(infos[path], size))) for path, own in frames.items()}
    if codec == "raw" or not pixels:
        return pixels
    share = []
    for path in list(frames)[:: max(1, len(frames) // _SAMPLED)]:
        own = _read(infos[path], [frames[path][len(frames[path]) // 2]], _fitted(infos[path], size))
        share.append(len(encode(own[0].permute(1, 2, 0).numpy(), codec, quality)) / own[0].numel())
    return {path: int(count * float(np.mean(share))) for path, count in pixels.items()}


def _check_space(out: Path, needed: int, say: Callable[[str], None]) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise InputError(
            f"packing needs about {needed / 2**30:.1f} GiB in {out}, where {free / 2**30:.1f} GiB are free"
        )
    if needed:
        say(f"about {needed / 2**20:,.0f} MiB are to be written to {out}")


def _shards(paths: list[str], done: int, sizes: dict[str, int]) -> Iterator[list[int]]:
    numbers: list[int] = []
    total = 0
    for number in range(done, len(paths)):
        if numbers and total + sizes[paths[number]] > _SHARD_BYTES:
            yield numbers
            numbers, total = [], 0
        numbers.append(number)
        total += sizes[paths[number]]
    if numbers:
        yield numbers


def _packed(
    info: VideoInfo, chosen: list[int], size: int | None, codec: str, quality: int
) -> tuple[PackedVideo, dict[str, np.ndarray]]:
    height, width = _fitted(info, size)
    parts: list[bytes] = []
    for i in range(0, len(chosen), 64):  # a long video is never whole in memory
        frames = _read(info, chosen[i : i + 64], (height, width))
        parts += [encode(frame.permute(1, 2, 0).contiguous().numpy(), codec, quality) for frame in frames]
    tensors: dict[str, np.ndarray] = {
        "bytes": np.frombuffer(b"".join(parts), np.uint8),
        "ends": np.cumsum([len(part) for part in parts], dtype=np.int64),
        "sums": np.array([zlib.crc32(part) for part in parts], dtype=np.int64),
    }
    pts = info.pts[chosen].tolist()
    packed = PackedVideo(
        path=info.path, pts=pts, time_base=info.time_base, height=height, width=width, is_numbered=info.is_numbered
    )
    return packed, tensors


def _read(info: VideoInfo, indices: list[int], size: tuple[int, int]) -> Tensor:
    frames = read_frames(info, indices)
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False).to(torch.uint8)
