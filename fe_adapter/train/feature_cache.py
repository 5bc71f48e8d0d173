"""Tokens of the frozen prefix on disk: with adapters in late blocks only, the blocks before them run once a clip.

A folder holds ``index.json`` and safetensors shards of a few clips each, whose checksums are in the index. It belongs
to one backbone (its fingerprint, and how its weights are stored), one first adapted block, and one list of unchanged
files sampled and transformed in one way without chance. An interrupted run goes on after the last whole shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils.data import Dataset

from fe_adapter.data.datasets import VideoDataset
from fe_adapter.data.feed import Feed
from fe_adapter.data.packed import file_of
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, make_folder, read_as
from fe_adapter.memory.frozen_weights import describe_storage
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.inference import PRECISIONS
from fe_adapter.models.origin import digest_of, identity_of, settings_of
from fe_adapter.models.prefix import prefix_tokens, split_blocks

INDEX = "index.json"
_SHARD_BYTES = 2**28


class Shard(BaseModel):
    """A file of the tokens of some clips."""

    model_config = ConfigDict(strict=True)

    file: str = Field(pattern=r"^shard-[0-9]{5,9}\.safetensors$")
    blake2b: str


class Index(BaseModel):
    """What ``index.json`` holds: what the tokens are of, and the shards so far."""

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    identity: dict[str, Any]
    clips_per_shard: int = Field(ge=1)
    shards: list[Shard] = []


class CachedFeatures(Dataset[dict[str, Any]]):
    """A data set whose items hold ``(T, L, D)`` tokens in the place of frames; `VideoClassifier` goes on from them.

    Made by `cache_features`. A shard's checksum is compared when it is first read.
    """

    def __init__(self, folder: Path, index: Index, source: VideoDataset) -> None:
        self.folder, self._shards, self._clips_per_shard = folder, index.shards, index.clips_per_shard
        self.paths, self.labels, self.class_names = source.paths, source.labels, source.class_names
        self.sampler, self.transform, self.clip_seconds = source.sampler, source.transform, source.clip_seconds
        self.targets, self.face_recipe = source.targets, source.face_recipe
        self.val_fraction, self.origin = source.val_fraction, source.origin
        self._checked: set[int] = set()

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: tokens are the same in every epoch."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index // self._clips_per_shard
        file = self.folder / self._shards[number].file
        if number not in self._checked:
            _check(file, self._shards[number].blake2b)
            self._checked.add(number)
        with safe_open(file, framework="pt") as shard:
            tokens = shard.get_tensor(str(index))
        item = {"video": tokens, "label": self.labels[index], "path": self.paths[index], "index": index}
        return item if self.targets is None else item | {"target": self.targets[index]}


def cache_features(
    model: VideoClassifier,
    dataset: VideoDataset,
    folder: Path | str,
    *,
    batch_size: int = 8,
    num_workers: int | str = "auto",
    precision: str = "no",
    progress: bool = True,
) -> CachedFeatures:
    """Run the frozen prefix of ``model`` over every clip once and keep its tokens in ``folder``, or use what is there.

    Training on the result has the losses of training on ``dataset``, up to the rounding of products of other sizes.

    Args:
        model: with adapters in late blocks only (``FEAdapterConfig(blocks=...)``).
        dataset: without chance: not ``is_training``, and with a transform such as `EvalTransform`.
        folder: made if need be; about ``clips · T · L · D`` elements of the backbone's dtype are written, which must
            be free on the disk beforehand.
        batch_size: clips at a time.
        num_workers: processes that decode; "auto" as of `fe_adapter.data.Feed`.
        precision: of the autocast the training will run in: "no", "bf16" or "fp16". Memory policies that round weights
            are to be on the model already.
        progress: show a progress bar.

    Raises:
        InputError: there is no prefix, or chance in the data; the folder is of something else, damaged, or the disk is
            too small.
    """
    folder = Path(folder)
    if model.tune != "adapter" or not split_blocks(model.vit)[0]:
        raise InputError("there is nothing to cache: the first block has an adapter; put adapters in late blocks only")
    if dataset.is_random:
        raise InputError("frames and transforms at random cannot be cached; use evaluation sampling and EvalTransform")
    make_folder(folder)
    identity = _identity(model, dataset) | {"precision": precision}
    tokens = partial(_tokens, model, precision)
    index = _read_index(folder, identity)
    if index is None or len(index.shards) * index.clips_per_shard < len(dataset):
        clip_bytes = tokens(dataset[0]["video"][None]).nbytes
        index = index or Index(identity=identity, clips_per_shard=max(1, _SHARD_BYTES // clip_bytes))
        _check_space(folder, clip_bytes * (len(dataset) - len(index.shards) * index.clips_per_shard))
    per_shard = index.clips_per_shard
    feed = Feed(dataset, batch_size, device=next(model.parameters()).device, num_workers=num_workers)
    missing = range(len(index.shards), math.ceil(len(dataset) / per_shard))
    for number in track(missing, "Caching features", transient=True, disable=not progress or not missing):
        clips = range(number * per_shard, min(len(dataset), (number + 1) * per_shard))
        content = to_bytes(_shard(feed.epoch(indices=clips), tokens))
        name = f"shard-{number:05d}.safetensors"
        with atomic_write(folder / name) as file:
            file.write(content)
        index.shards.append(Shard(file=name, blake2b=hashlib.blake2b(content, digest_size=16).hexdigest()))
        with atomic_write(folder / INDEX) as file:  # after each shard: an interrupted run goes on from here
            file.write(json.dumps(index.model_dump()).encode())
    return CachedFeatures(folder, index, dataset)


def _shard(batches: Iterable[dict[str, Any]], tokens: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    shard = {}
    for batch in batches:
        for i, clip in zip(batch["index"].tolist(), tokens(batch["video"]).cpu(), strict=True):
            shard[str(i)] = clip.clone()
    return shard


def _tokens(model: VideoClassifier, precision: str, video: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "no"):
        tokens = prefix_tokens(model.vit, lambda: model(video.to(device)))
    return tokens.unflatten(0, video.shape[:2])


def _identity(model: VideoClassifier, dataset: VideoDataset) -> dict[str, Any]:
    files = "\n".join(
        f"{_file(clip.path)} {clip.window}" if clip.window else _file(clip.path) for clip in dataset.clips
    )
    return {
        "backbone": identity_of(model.vit),
        "settings": digest_of(settings_of(model.vit)),
        "weights": describe_storage(model.vit),
        "first_adapted_block": len(split_blocks(model.vit)[0]),
        "files": hashlib.blake2b(files.encode(), digest_size=16).hexdigest(),
        "frames": repr(dataset.sampler),
        "transform": repr(dataset.transform),
        "faces": None if dataset.faces is None else dataset.faces.describe(),
    }


def _file(path: str) -> str:
    """A file and whether it has changed since, as far as its size and time tell."""
    try:
        status = file_of(path).stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _read_index(folder: Path, identity: dict[str, Any]) -> Index | None:
    file = folder / INDEX
    if not file.exists():
        return None
    try:
        index = read_as(Index, file, "is no index of cached features")
    except InputError as error:
        raise InputError(f"{error}; remove the folder") from None
    for key, value in identity.items():
        if index.identity.get(key) != value:
            other = f"other {key}" if key.endswith("s") else f"another {key}"
            raise InputError(f"the features in {folder} are of {other}; remove the folder or choose another one")
    return index


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"caching needs {needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free")


def _check(file: Path, digest: str) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
        raise InputError(f"{file} has changed since it was written; remove the folder and cache again")
