"""`FEAdapterConfig`: which adapter, where, and how it computes."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from fe_adapter.errors import InputError

ACTIVATIONS = ("identity", "relu", "gelu", "silu")
BACKENDS = ("auto", "triton", "eager")
POSITIONS = ("attn", "mlp")
RECOMPUTE = (None, "hidden", "input")


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raise `InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``; raises `InputError` (too small) or `TypeError` (no integer)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} is not an integer") from None
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not an integer")
    if number < least:
        raise InputError(f"{name}={number} is too small; it must be at least {least}")
    return number


def check_kernel_size(kernel_size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """``kernel_size`` as ``(K, kh, kw)``, each odd and at least 1."""
    sizes = (kernel_size, 1, 1) if not isinstance(kernel_size, (tuple, list)) else tuple(kernel_size)
    if len(sizes) != 3:
        raise InputError(f"kernel_size={kernel_size!r} has {len(sizes)} sizes; give K or (K, kh, kw)")
    for size in sizes:
        if check_count("kernel_size", size, 1) % 2 == 0:
            raise InputError(f"kernel_size={kernel_size!r} has the even size {size}; taps are centred, so they are odd")
    return sizes[0], sizes[1], sizes[2]


def check_grid_size(grid_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """``grid_size`` as ``(H, W)``, each at least 1, or None."""
    if grid_size is None:
        return None
    if not isinstance(grid_size, (tuple, list)) or len(grid_size) != 2:
        raise InputError(f"grid_size={grid_size!r} is no pair (H, W)")
    return check_count("grid_size", grid_size[0], 1), check_count("grid_size", grid_size[1], 1)


def check_dilation(dilation: int | str, max_dilation: float | None) -> None:
    """``dilation`` is "dynamic" or an integer of at least 1; ``max_dilation`` only bounds a dynamic one."""
    if isinstance(dilation, str):
        if dilation != "dynamic":
            raise InputError(f"dilation={dilation!r} is neither 'dynamic' nor a number of at least 1")
    else:
        check_count("dilation", dilation, 1)
        if max_dilation is not None:
            raise InputError(f"max_dilation={max_dilation} bounds a dynamic dilation; dilation={dilation} is fixed")
    if max_dilation is not None and not (isinstance(max_dilation, (int, float)) and max_dilation > 0):
        raise InputError(f"max_dilation={max_dilation!r} is no positive number")


@dataclasses.dataclass(frozen=True)
class FEAdapterConfig:
    """The adapters of one model. Validates itself; `dataclasses.asdict` round-trips through JSON.

    Args:
        bottleneck: width R after the down-projection; None is half of the backbone's width.
        kernel_size: temporal taps K, or ``(K, kh, kw)`` to convolve over the patch grid as well; odd.
        dilation: frames between taps, an integer of at least 1, or "dynamic": predicted for every token.
        max_dilation: upper bound of a dynamic dilation, in frames.
        activation: between convolution and up-projection; one of "identity", "relu", "gelu" (tanh form), "silu".
        positions: where in a block, "attn" (before self-attention), "mlp" (before the MLP), or both.
        blocks: indices of the blocks that get adapters (negative ones count from the end); None is all.
        recompute: what backward computes again instead of keeping it, None, "hidden" or "input".
        backend: "auto", "triton" or "eager".

    Raises:
        InputError: a value is out of range (a `ValueError`).
        TypeError: a count is no integer.
    """

    bottleneck: int | None = None
    kernel_size: int | tuple[int, int, int] = 3
    dilation: int | str = "dynamic"
    max_dilation: float | None = None
    activation: str = "identity"
    positions: tuple[str, ...] = ("attn",)
    blocks: tuple[int, ...] | None = None
    recompute: str | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.bottleneck is not None:
            check_count("bottleneck", self.bottleneck, 1)
        check_kernel_size(self.kernel_size)
        check_dilation(self.dilation, self.max_dilation)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("recompute", self.recompute, RECOMPUTE)
        check_choice("backend", self.backend, BACKENDS)
        positions = (self.positions,) if isinstance(self.positions, str) else tuple(self.positions)
        if not positions or len(set(positions)) != len(positions):
            raise InputError(f"positions={self.positions!r} must name 'attn', 'mlp' or both, each once")
        for position in positions:
            check_choice("positions", position, POSITIONS)
        object.__setattr__(self, "positions", positions)
        if isinstance(self.kernel_size, list):  # as JSON brings it back
            object.__setattr__(self, "kernel_size", tuple(self.kernel_size))
        if self.blocks is not None:
            blocks = tuple(check_count("blocks", block, -(2**31)) for block in self.blocks)
            if not blocks or len(set(blocks)) != len(blocks):
                raise InputError(f"blocks={self.blocks!r} must name at least one block, each once; None is all of them")
            object.__setattr__(self, "blocks", blocks)

    @classmethod
    def st_adapter(cls, form: str = "12x384", **changes: Any) -> FEAdapterConfig:
        """The published ST-Adapter forms: "12x384" (before the MLP) and "24x384" (before attention and MLP)."""
        positions = {"12x384": ("mlp",), "24x384": ("attn", "mlp")}
        check_choice("form", form, tuple(positions))
        published: dict[str, Any] = {"bottleneck": 384, "kernel_size": 3, "dilation": 1, "positions": positions[form]}
        return cls(**published | changes)
