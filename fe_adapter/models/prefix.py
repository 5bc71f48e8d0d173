"""The frozen prefix of an adapted backbone: everything before its first adapter, whose output never changes.

`prefix_tokens` runs it alone; within `starting_from` the backbone goes on from such tokens. Both work by hooks on the
blocks, for every library's models: what else a forward computes from images (positions, masks) it still computes, from
black ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks
from fe_adapter.models.adaptation import get_adaptation, get_adapters
from fe_adapter.models.blocks import first_argument, with_first_argument
from fe_adapter.models.forwards import override_forward, restore_forward


class _Reached(Exception):  # noqa: N818 (it is no error)
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def split_blocks(vit: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """The blocks before the first adapter, and the block with it."""
    blocks = get_blocks(vit, get_adaptation(vit).blocks_path)
    first = next(i for i, block in enumerate(blocks) if get_adapters(block))
    return blocks[:first], blocks[first]


def prefix_tokens(vit: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The tokens ``(B*T, L, D)`` that the first adapted block is given when ``run()`` runs ``vit``; it stops there."""

    def stop(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Reached(first_argument(args, kwargs))

    _, block = split_blocks(vit)
    handle = block.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        run()
    except _Reached as reached:
        return reached.tokens
    finally:
        handle.remove()
    raise AssertionError("the first adapted block did not run")


@contextlib.contextmanager
def starting_from(vit: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Within the context ``vit`` takes ``tokens`` in place of what its prefix would compute, and skips the prefix."""

    def replace(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return with_first_argument(tokens, args, kwargs)

    skipped, block = split_blocks(vit)
    for other in skipped:
        override_forward(other, _pass_through)
    handle = block.register_forward_pre_hook(replace, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        for other in skipped:
            restore_forward(other, _pass_through)


def _pass_through(block: nn.Module, own: Callable, *args: Any, **kwargs: Any) -> Any:
    return first_argument(args, kwargs)
