"""`Feed`: the batches of a data set on the device that consumes them, epoch after epoch."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from fe_adapter.checks import check_num_workers
from fe_adapter.data.loader import batches_of, can_have_workers, check_workers, data_loader, num_cores, one_line_errors
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.data.transforms import MAX_SENT, finish
from fe_adapter.errors import InputError

MOST_WORKERS = 8  # that "auto" starts
SLOW = 0.2  # share of an epoch's time waited for data, from which a CPU that trains starts a worker
WORTH_SECONDS = 10.0  # waited in an epoch, below which starting it is not worth its own time
_SHARED_MEMORY = Path("/dev/shm")


class Feed:
    """Batches as of `make_loader`, on ``device``; the same ones whatever the device and the number of workers.

    On a GPU, workers decode and cut, and the GPU does the rest of the transform (`fe_adapter.data.transforms.finish`)
    where the data set leaves it that (``unfinished``, as `VideoDataset` has). Copies and transforms run on a stream of
    their own, beside the step before, which they never wait for. On a CPU, workers do all of it.

    Args:
        dataset: a `ClipDataset`.
        batch_size: B.
        device: where ``video`` and ``label`` of a batch are; ``index`` stays on the CPU.
        sampler: as of `make_loader`.
        seed: likewise.
        num_workers: processes that decode, which live as long as the feed; 0 decodes in this one. "auto" is, on a GPU,
            one for each core but this process's own, at most 8; on a CPU, which trains as well, none, and one after an
            epoch of which a fifth was waited for data. It is 0 where workers cannot start, or videos are in memory.
        shard: as of `make_loader`.
        finishes: whether this process finishes transforms and not the workers; None does so for a GPU.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        sampler: str | None = None,
        seed: int = 0,
        num_workers: int | str = "auto",
        shard: tuple[int, int] = (0, 1),
        finishes: bool | None = None,
    ) -> None:
        check_num_workers(num_workers)
        self.device = torch.device(device)
        if finishes is None:
            finishes = self.device.type == "cuda"
        self._items = _Items(dataset, leave_unfinished=finishes and hasattr(dataset, "unfinished"))
        self._dataset, self._batch_size, self._shard = dataset, batch_size, shard
        self._sampler, self._seed, self._num_workers = sampler, seed, num_workers
        self._batches = _Batches()
        self._loader: DataLoader[Any] | None = None
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._may_grow, self._was_slow = num_workers == "auto" and self.device.type == "cpu", False
        self.waited = 0.0  # seconds, by whoever asked for the last batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(math.ceil(len(self._dataset) / self._batch_size) / self._shard[1])

    def epoch(
        self, epoch: int | None = None, start_batch: int = 0, indices: Sequence[int] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The batches of an epoch from ``start_batch`` on; None leaves the data set's own epoch as it is.

        Args:
            epoch: of the order and, by the data set's ``set_epoch``, of all that is left to chance.
            start_batch: batches to leave out, undecoded.
            indices: those clips alone, in that order.
        """
        options = self._sampler, self._seed, epoch or 0, start_batch, self._shard, indices
        batches = batches_of(self._dataset, self._batch_size, *options)
        self._batches.places = [[(epoch, index) for index in batch] for batch in batches]
        if epoch is not None:
            self._dataset.set_epoch(epoch)
        waited, start = 0.0, time.perf_counter()
        asked = start
        for batch in one_line_errors(self._ready_loader()):
            moved = self._moved(batch)
            self.waited = time.perf_counter() - asked
            waited += self.waited
            yield moved
            asked = time.perf_counter()
        self._was_slow = waited > max(WORTH_SECONDS, SLOW * (time.perf_counter() - start))

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _ready_loader(self) -> DataLoader[Any]:
        if self._loader is None:
            asked = self._num_workers
            self._start(self._auto_workers() if isinstance(asked, str) else check_workers(asked, self._items))
        elif self._may_grow and self._was_slow:
            self._may_grow = False
            self._start(int(num_cores() > 1 and self._can_have_workers()))
        assert self._loader is not None
        return self._loader

    def _start(self, num_workers: int) -> None:
        self._loader = data_loader(
            self._items,
            self._batches,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            seed=self._seed,
        )

    def _auto_workers(self) -> int:
        if self.device.type == "cpu" or not self._can_have_workers():
            return 0
        return min(MOST_WORKERS, max(1, num_cores() - 1), len(self), self._workers_with_room())

    def _can_have_workers(self) -> bool:
        in_memory = getattr(self._dataset, "in_memory", False)  # of each worker, too
        return not in_memory and can_have_workers(self._items)

    def _workers_with_room(self) -> int:
        """How many have room for the batches on their way, which are in shared memory: small in many containers."""
        if not _SHARED_MEMORY.is_dir():
            return MOST_WORKERS
        clip_bytes = self._dataset[0]["video"].nbytes * (MAX_SENT if self._items.leave_unfinished else 1)
        return shutil.disk_usage(_SHARED_MEMORY).free // (3 * self._batch_size * clip_bytes)

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._stream is None:
            return _on_device(batch, self.device)
        with torch.cuda.stream(self._stream):
            moved = _on_device(batch, self.device)
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_stream(self._stream)
        for name in {"video", "label", "target"}.intersection(moved):
            moved[name].record_stream(consumer)  # or its memory would go to the next batch while it is read
        return moved


def transformed(parts: Sequence[Tensor], edits: Sequence[Any], device: torch.device) -> Tensor:
    """``(B, T, 3, height, width)`` on ``device``: every part finished by its edit, on a GPU there, else here.

    Parts that are to reach a GPU without a wait are in pinned memory.
    """
    place = device if device.type == "cuda" else torch.device("cpu")
    pairs = zip(parts, edits, strict=True)
    return torch.stack([finish(_sent(part, place), edit) for part, edit in pairs]).to(device)


def _on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    video, edits = batch["video"], batch.pop("edit", None)
    video = _sent(video, device) if edits is None else transformed(video, edits, device)
    return (
        batch | {"video": video} | {name: _sent(batch[name], device) for name in ("label", "target") if name in batch}
    )


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=device.type == "cuda")


class _Items:
    """A data set whose items are asked for by epoch and index: by workers that were there in the epoch before."""

    def __init__(self, dataset: ClipDataset, leave_unfinished: bool) -> None:
        self.dataset, self.leave_unfinished = dataset, leave_unfinished
        self._epoch: int | None = None

    def __getitem__(self, place: tuple[int | None, int]) -> dict[str, Any]:
        epoch, index = place
        if epoch is not None and epoch != self._epoch:
            self.dataset.set_epoch(epoch)
            self._epoch = epoch
        source: Any = self.dataset
        return source.unfinished(index) if self.leave_unfinished else source[index]


class _Batches:
    """What a loader that goes on from epoch to epoch asks for in the present one."""

    def __init__(self) -> None:
        self.places: list[list[tuple[int | None, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """As PyTorch does, but for parts that are not of one size yet, which are a list."""
    if "edit" not in items[0]:
        shapes = {tuple(item["video"].shape): item["path"] for item in items}
        if len(shapes) > 1:
            (shape, path), (other_shape, other) = list(shapes.items())[:2]
            raise InputError(
                f"the clips of a batch must have one shape; {path} is {shape}, {other} is {other_shape}: let the "
                "transform scale them, or take batches of one clip"
            )
        return default_collate(items)
    lists = {name: [item.pop(name) for item in items] for name in ("video", "edit")}
    return default_collate(items) | lists
