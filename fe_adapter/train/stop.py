"""Stopping a run between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from fe_adapter.errors import Terminated


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request that a loop honours after its step; a second one interrupts."""

    def __enter__(self) -> StopSignal:
        self.requested = False
        self._number = 0
        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self._number = True, number

    def stop(self) -> None:
        """Raise what the signal asked for."""
        raise Terminated if self._number == signal.SIGTERM else KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
