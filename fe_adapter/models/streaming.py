"""The adapters of a backbone on streams: each keeps what it needs of earlier frames, and sees one frame at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks
from fe_adapter.errors import InputError
from fe_adapter.layers import FEAdapter
from fe_adapter.models.adaptation import active_adapters, get_adaptation
from fe_adapter.models.blocks import get_state
from fe_adapter.ops.stream import StreamState

_log = logging.getLogger("fe_adapter")


class AdapterStreams:
    """The states of all adapters that run in ``vit``, for streams that come as a batch.

    Args:
        vit: adapted, with causal adapters.
        batch_size: streams B.

    Raises:
        InputError: an adapter is not causal; later, another one is active than when the streams began.
    """

    def __init__(self, vit: nn.Module, batch_size: int) -> None:
        self._vit, self._batch_size = vit, batch_size
        self._states: dict[FEAdapter, StreamState] = {}
        self._name = get_adaptation(vit).active
        adapters = list(active_adapters(vit))
        if not all(adapter.causal for adapter in adapters):
            raise InputError(
                "this model's adapters look at later frames, which a stream does not have yet; train one with "
                "fe-adapter train --causal (FEAdapterConfig(causal=True))"
            )
        if any(adapter.dilation == "dynamic" and adapter.max_dilation is None for adapter in adapters):
            _log.warning(
                "the adapters' dilation has no upper bound, so that every frame of a stream is kept and memory grows; "
                "train with --max-dilation (FEAdapterConfig(max_dilation=…)) for streams without an end"
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within the context a call of the backbone is the next frame of every stream, ``(B, 3, h, w)``."""
        blocks = get_blocks(self._vit, get_adaptation(self._vit).blocks_path)
        states = [state for state in map(get_state, blocks) if state is not None]
        if any(state.names is not None or state.active != self._name for state in states):
            raise InputError(
                f"these streams began with the adapter {self._name!r}; set it again, or begin others with another one"
            )
        for state in states:
            state.through = self._update
        try:
            yield
        finally:
            for state in states:
                state.through = None

    def reset(self, streams: Sequence[int] | Tensor | None = None) -> None:
        """Let ``streams`` (indices, or a mask) begin again; None is all of them."""
        if streams is None:
            self._states = {}
        for state in self._states.values():
            state.reset(streams)

    def _update(self, adapter: FEAdapter, tokens: Tensor) -> Tensor:
        state = self._states.get(adapter)
        if state is None:
            state = adapter.init_state(self._batch_size, tokens.shape[1])
        tokens, self._states[adapter] = adapter.update(tokens, state)
        return tokens
