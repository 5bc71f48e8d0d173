"""Checks that end in every way there is, to see that `bench.gpu` reports each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from bench.measure.case import SkippedError


def get_checks() -> dict[str, Callable[[], None]]:
    ends = {"right": right, "wrong": wrong, "crash": crash, "skip": skip, "right again": right}
    return {f"ends {how}": check for how, check in ends.items()} | {"hangs": hang}


def right() -> None:
    pass


def wrong() -> None:
    raise AssertionError("y: 3.0 times the allowed error\nmore")


def crash() -> None:
    os._exit(3)


def skip() -> None:
    raise SkippedError("no GPU")


def hang() -> None:
    time.sleep(3600)
