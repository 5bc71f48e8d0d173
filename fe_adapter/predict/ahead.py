"""What an iterator gives, by a thread that is ahead of whoever asks."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_LOOK = 0.1  # seconds between looks at whether anybody still asks


def ahead(items: Iterator[T], size: int, may_lose: bool = False) -> Generator[T, None, None]:
    """``items``, asked for by a thread until ``size`` of them wait; what it raises is raised here.

    Args:
        items: closed by the thread, if they can be closed, once nobody asks any more.
        size: items that wait at most.
        may_lose: the oldest one that waits gives place to a new one, so that ``items`` never wait.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(size)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                waiting.put((kind, value), timeout=_LOOK)
                return
            except queue.Full:
                pass

    def put_newest(value: T) -> None:
        while True:
            try:
                return waiting.put_nowait(("item", value))
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    waiting.get_nowait()

    def read() -> None:
        try:
            for item in items:
                put_newest(item) if may_lose else put("item", item)
                if stopped.is_set():
                    break
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            if hasattr(items, "close"):
                items.close()

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
