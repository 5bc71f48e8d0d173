"""What the options of layers, configs and commands may be: each check is one line that says what was given."""

from __future__ import annotations

import math
import operator

from torch import Tensor

from fe_adapter.errors import InputError

ACTIVATIONS = ("identity", "relu", "gelu", "silu")
BACKENDS = ("auto", "triton", "eager")
POSITIONS = ("attn", "mlp")
Dilation = int | str | tuple[int, int, int]  # frames, "dynamic", or (t, h, w)
RECOMPUTE = (None, "hidden", "input")
# beyond what any sane model or run has; without them a slip of the keyboard takes minutes or all memory
MAX_WIDTH = 2**16
MAX_TAPS = 2**10
MAX_FRAMES = 2**16
MAX_BLOCKS = 2**10
MAX_CLIPS = 2**20  # of a batch, or batches of a step
MAX_WORKERS = 2**10


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raise `InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> bool:
    """``value``, which is True or False; raises `TypeError` otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is neither True nor False")
    return value


def check_count(name: str, value: object, least: int, most: int | None = None) -> int:
    """``value`` as an int from ``least`` to ``most``; raises `InputError` (beyond them) or `TypeError` (no integer)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} is not an integer") from None
    if isinstance(value, bool | Tensor):  # a tensor may be another number by the time it is used
        raise TypeError(f"{name}={value!r} is not an integer")
    if number < least:
        raise InputError(f"{name}={number} is too small; it must be at least {least}")
    if most is not None and number > most:
        raise InputError(f"{name}={number} is too large; it must be at most {most}")
    return number


def check_positive(name: str, value: float) -> None:
    """Raise `InputError` unless it is a positive number, of seconds or the like, that anybody can mean."""
    if not 0 < value < 1e6:
        raise InputError(f"{name}={value} is not positive, or too large")


def check_num_workers(num_workers: int | str) -> None:
    """Raise `InputError` unless it is "auto" or a number of processes."""
    if num_workers == "auto":
        return
    if isinstance(num_workers, str):
        raise InputError(f"num_workers={num_workers!r} is neither 'auto' nor a number")
    check_count("num_workers", num_workers, 0, MAX_WORKERS)


def check_kernel_size(kernel_size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """``kernel_size`` as ``(K, kh, kw)``, each odd and at least 1."""
    sizes = (kernel_size, 1, 1) if not isinstance(kernel_size, (tuple, list)) else tuple(kernel_size)
    if len(sizes) != 3:
        raise InputError(f"kernel_size={kernel_size!r} has {len(sizes)} sizes; give K or (K, kh, kw)")
    for size in sizes:
        if check_count("kernel_size", size, 1, MAX_TAPS) % 2 == 0:
            raise InputError(f"kernel_size={kernel_size!r} has the even size {size}; kernels have odd sizes")
    return sizes[0], sizes[1], sizes[2]


def check_grid_size(grid_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """``grid_size`` as ``(H, W)``, each at least 1, or None."""
    if grid_size is None:
        return None
    if not isinstance(grid_size, (tuple, list)) or len(grid_size) != 2:
        raise InputError(f"grid_size={grid_size!r} is no pair (H, W)")
    return check_count("grid_size", grid_size[0], 1), check_count("grid_size", grid_size[1], 1)


def check_dilation(dilation: Dilation, max_dilation: float | None, kernel_size: tuple[int, ...]) -> Dilation:
    """``dilation`` as "dynamic", frames, or ``(t, h, w)``, each at least 1; ``max_dilation`` only bounds a dynamic one.

    ``kernel_size`` is ``(K, kh, kw)``: h and w need one that has an extent on the patch grid.
    """
    if isinstance(dilation, str):
        if dilation != "dynamic":
            raise InputError(f"dilation={dilation!r} is neither 'dynamic' nor a number of at least 1")
        is_number = isinstance(max_dilation, (int, float)) and not isinstance(max_dilation, bool)
        if max_dilation is not None and not (is_number and 0 < max_dilation < math.inf):
            raise InputError(f"max_dilation={max_dilation!r} is no positive number")
        return dilation
    if max_dilation is not None:
        raise InputError(f"max_dilation={max_dilation} bounds a dynamic dilation; dilation={dilation} is fixed")
    if not isinstance(dilation, (tuple, list)):
        return check_count("dilation", dilation, 1)  # what is beyond the clip is as long as the clip
    if len(dilation) != 3:
        raise InputError(f"dilation={tuple(dilation)} has {len(dilation)} entries; give frames, or (t, h, w)")
    t, h, w = (check_count("dilation", distance, 1) for distance in dilation)
    if tuple(kernel_size[1:]) == (1, 1) and (h, w) != (1, 1):
        raise InputError(
            f"dilation={(t, h, w)} spreads taps over the patch grid, where kernel_size={tuple(kernel_size)} has none; "
            f"give dilation={t}, or kernel_size=(K, kh, kw)"
        )
    return t, h, w
