"""`FEAdapterConfig`: which adapter, where, and how it computes."""

from __future__ import annotations

import dataclasses
from typing import Any

from fe_adapter.checks import (
    ACTIVATIONS,
    BACKENDS,
    POSITIONS,
    RECOMPUTE,
    check_choice,
    check_count,
    check_dilation,
    check_kernel_size,
)
from fe_adapter.errors import InputError


@dataclasses.dataclass(frozen=True)
class FEAdapterConfig:
    """The adapters of one model. Validates itself; `dataclasses.asdict` round-trips through JSON.

    Args:
        bottleneck: width R after the down-projection; by default (None) half of the backbone's.
        kernel_size: temporal taps K, or ``(K, kh, kw)`` to convolve over the patch grid as well; odd.
        dilation: frames between taps, an integer of at least 1, or "dynamic": predicted for every token.
        max_dilation: upper bound of a dynamic dilation, in frames.
        activation: between convolution and up-projection; one of "identity", "relu", "gelu" (tanh form), "silu".
        positions: where in a block, "attn" (before self-attention), "mlp" (before the MLP), or both.
        blocks: indices of the blocks that get adapters (negative ones count from the end); None is all.
        recompute: what backward computes again instead of keeping it: "hidden" or "input"; by default (None) nothing.
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
