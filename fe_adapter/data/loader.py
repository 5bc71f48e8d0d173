"""Batches in an order that is a function of seed and epoch, from any batch on."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from fe_adapter.checks import check_choice, check_count
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.errors import InputError, first_line

_log = logging.getLogger("fe_adapter")

SAMPLERS = (None, "shuffle", "balanced")
_GUARD = re.compile(r"^if\b.*(?<!\.)\b__name__\b", re.MULTILINE)  # not the name of a class, as in type(x).__name__


def make_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    sampler: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    start_batch: int = 0,
    shard: tuple[int, int] = (0, 1),
    indices: Sequence[int] | None = None,
) -> DataLoader[dict[str, Any]]:
    """Batches ``{"video": (B, T, 3, h, w), "label": (B,), "path": [...], "index": (B,)}`` of one epoch.

    Workers are started from a clean server process, never forked from this one: threads of PyTorch or FFmpeg that are
    running here cannot leave locks behind in them. A script that uses workers needs ``if __name__ == "__main__":``.

    Args:
        dataset: as it is; call its ``set_epoch`` before.
        batch_size: B; the last batch may be smaller.
        sampler: None keeps the order, "shuffle" permutes, "balanced" draws every class equally often, with repetition.
        seed: of the order.
        epoch: of the order.
        num_workers: processes that decode; 0 decodes in this one.
        start_batch: leave out the first batches without decoding them, to resume within an epoch.
        shard: ``(index, count)``: every count-th batch from index on. All shards have as many batches: where they
            do not come out even, the first batches of the epoch are in them once more.
        indices: those clips alone, in that order; without a sampler.

    Raises:
        InputError: workers would run a script again from its start, or cannot be sent the data set.
    """
    return data_loader(
        dataset,
        batches_of(dataset, batch_size, sampler, seed, epoch, start_batch, shard, indices),
        num_workers=check_workers(num_workers, dataset),
        seed=seed,
        pin_memory=torch.cuda.is_available(),
    )


def batches_of(
    dataset: ClipDataset,
    batch_size: int,
    sampler: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    shard: tuple[int, int] = (0, 1),
    indices: Sequence[int] | None = None,
) -> list[list[int]]:
    """Which clips are in every batch of an epoch, as of `make_loader`."""
    check_choice("sampler", sampler, SAMPLERS)
    check_count("batch_size", batch_size, 1)
    order = _order(dataset, sampler, seed, epoch) if indices is None else list(indices)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    index, count = shard
    return [batches[(i + index) % len(batches)] for i in range(start_batch, len(batches), count)]


def data_loader(dataset: Any, batches: Iterable[list[Any]], *, num_workers: int, **options: Any) -> DataLoader[Any]:
    """PyTorch's loader of ``batches``, with our workers; ``options`` are its own, and ``seed``.

    Whether there can be workers is for the caller to ask: `check_workers`, `can_have_workers`.
    """
    return DataLoader(
        cast("Dataset[Any]", dataset),  # of which it needs no more than we do
        batch_sampler=batches,
        num_workers=num_workers,
        multiprocessing_context=_context() if num_workers else None,
        worker_init_fn=_follow_main_process,
        # or the global one would lose a number to each loader
        generator=torch.Generator().manual_seed(options.pop("seed", 0)),
        **options,
    )


def _order(dataset: ClipDataset, sampler: str | None, seed: int, epoch: int) -> list[int]:
    n = len(dataset)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if sampler == "shuffle":
        return torch.randperm(n, generator=generator).tolist()
    if sampler == "balanced":
        labels = torch.tensor(dataset.labels)
        weights = 1 / torch.bincount(labels).float()[labels]
        return torch.multinomial(weights, n, replacement=True, generator=generator).tolist()
    return list(range(n))


def check_workers(num_workers: int, items: Any) -> int:
    """``num_workers``; raises `InputError` where they would run a script again or cannot be sent ``items``."""
    if num_workers and (reason := _obstacle(items)):
        raise InputError(f"num_workers={num_workers} cannot be honoured: {reason}")
    return num_workers


def can_have_workers(items: Any) -> bool:
    """Whether processes can be started that read ``items``; where not, why is logged."""
    if multiprocessing.current_process().daemon:
        return False
    reason = _obstacle(items)
    if reason is not None:
        _log.warning("videos are decoded in this process: %s", reason)
    return reason is None


def _obstacle(items: Any) -> str | None:
    """Why workers cannot read ``items``; None where they can."""
    return _unguarded_script() or _unsendable(items)


def num_cores() -> int:
    """Cores that this process may use, of which processes of one run on this machine have a share each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def one_line_errors(loader: Any) -> Iterator[dict[str, Any]]:
    """The batches of ``loader``; an `InputError` of a worker, which arrives with its stack trace, in its own words."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from None


def _follow_main_process(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the main process; and end when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if main is not None:  # PyTorch's own watchdog sees the server process that forked this one, not the main one

        def follow() -> None:
            main.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _context() -> Any:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker  # which are not there on Windows

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fe_adapter.data.datasets"])  # so that each worker starts at once
    # with Ctrl-C blocked from their birth, before they can ignore it; the tracker would unblock it, were it not there
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _unguarded_script() -> str | None:
    """Why a worker, which imports the main script again, would run it from its start, too; None where it would not."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is not None or file is None:  # python -m, or no script at all
        return None
    try:
        is_guarded = bool(_GUARD.search(Path(file).read_text(encoding="utf-8", errors="replace")))
    except OSError:
        is_guarded = False
    return None if is_guarded else f"workers need `if __name__ == '__main__':` in {file}"


def _unsendable(items: Any) -> str | None:
    """Why a worker cannot have ``items``; None where it can."""
    try:
        sent = pickle.dumps(items)
    except Exception as error:  # of a data set's own, too
        return f"the data set cannot be sent to workers ({first_line(error)})"
    if b"__main__" in sent and getattr(sys.modules["__main__"], "__file__", None) is None:
        return "the data set cannot be sent to workers, since it is of a class of this session; put that into a file"
    return None
