"""`FEAdapterConfig`: which adapter, where, and how it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fe_adapter.checks import (
    ACTIVATIONS,
    BACKENDS,
    MAX_WIDTH,
    POSITIONS,
    RECOMPUTE,
    Dilation,
    check_choice,
    check_count,
    check_dilation,
    check_flag,
    check_kernel_size,
)
from fe_adapter.errors import InputError


@dataclasses.dataclass(frozen=True)
class FEAdapterConfig:
    """The adapters of one model. Validates itself; `dataclasses.asdict` round-trips through JSON.

    Args:
        bottleneck: width R after the down-projection; by default (None) half of the backbone's.
        kernel_size: temporal taps K, or ``(K, kh, kw)`` to convolve over the patch grid as well; odd.
        dilation: frames between taps, an integer of at least 1; or ``(t, h, w)``, patches on the grid as well, of a
            spatial kernel; or a sequence with one of these for each adapted block; or "dynamic": predicted for every
            token.
        max_dilation: upper bound of a dynamic dilation, in frames.
        causal: look at the present frame and earlier ones alone, so that streams can be predicted frame by frame.
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
    dilation: Dilation | tuple[int | tuple[int, int, int], ...] = "dynamic"
    max_dilation: float | None = None
    causal: bool = False
    activation: str = "identity"
    positions: tuple[str, ...] = ("attn",)
    blocks: tuple[int, ...] | None = None
    recompute: str | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.bottleneck is not None:
            check_count("bottleneck", self.bottleneck, 1, MAX_WIDTH)
        check_kernel_size(self.kernel_size)
        object.__setattr__(self, "dilation", self._checked_dilation())
        check_flag("causal", self.causal)
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

    def dilations(self, num_blocks: int) -> list[Dilation]:
        """The dilation of each of ``num_blocks`` adapted blocks, first to last.

        Raises:
            InputError: ``dilation`` names another number of blocks, or could mean two things.
        """
        if not isinstance(self.dilation, tuple):
            return [self.dilation] * num_blocks
        if self._is_one_triple(self.dilation):
            if num_blocks == 3:
                raise InputError(
                    f"dilation={self.dilation} is one (t, h, w) or a number for each of 3 blocks; "
                    "write one (t, h, w) per block"
                )
            return [self.dilation] * num_blocks  # type: ignore[list-item]
        if len(self.dilation) != num_blocks:
            raise InputError(f"dilation names {len(self.dilation)} blocks, but {num_blocks} are adapted")
        return list(self.dilation)

    def _checked_dilation(self) -> Any:
        """``dilation`` as integers and tuples, lists being what JSON brings back."""
        dilation, kernel_size = self.dilation, check_kernel_size(self.kernel_size)
        if not isinstance(dilation, (tuple, list)) or self._is_one_triple(dilation):
            return check_dilation(dilation, self.max_dilation, kernel_size)  # type: ignore[arg-type]
        if not dilation:
            raise InputError(f"dilation={dilation!r} names no block; give one for each, or one for all")
        if any(isinstance(entry, str) for entry in dilation):
            raise InputError(f"dilation={dilation!r} must be numbers, one for each block; 'dynamic' is for all blocks")
        return tuple(check_dilation(entry, self.max_dilation, kernel_size) for entry in dilation)

    def _is_one_triple(self, dilation: Sequence[object]) -> bool:
        """Whether a sequence is (t, h, w) for every block: three numbers, of a spatial kernel."""
        spatial = check_kernel_size(self.kernel_size)[1:] != (1, 1)
        return spatial and len(dilation) == 3 and not any(isinstance(entry, (tuple, list)) for entry in dilation)

    @classmethod
    def st_adapter(cls, form: str = "12x384", **changes: Any) -> FEAdapterConfig:
        """The published ST-Adapter forms: "12x384" (before the MLP) and "24x384" (before attention and MLP)."""
        positions = {"12x384": ("mlp",), "24x384": ("attn", "mlp")}
        check_choice("form", form, tuple(positions))
        published: dict[str, Any] = {"bottleneck": 384, "kernel_size": 3, "dilation": 1, "positions": positions[form]}
        return cls(**published | changes)
