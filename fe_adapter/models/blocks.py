"""How a block of an image transformer runs: with adapters in it, or around all of it what a memory policy wants.

A block that is different from its class has one `BlockState`; `_run`, which takes the place of its forward, reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fe_adapter.errors import InputError
from fe_adapter.models.forwards import override_forward, restore_forward

# (run, block, args, kwargs): calls run(*args, **kwargs), which is the block and its adapters
Around = Callable[[Callable, nn.Module, tuple, dict[str, Any]], Any]
CHILDREN = {"attn": "fe_adapter", "mlp": "fe_adapter_mlp"}  # by position: the block's children that are adapters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEFAULT = "default"  # the adapter that `adapt` makes


@dataclasses.dataclass
class BlockState:
    """What is different about a block; it is the block's attribute ``fe_state``.

    Args:
        adapters: by name, the positions of an adapter and the block's child that is there.
        active: the name of the adapter that runs; the block may have none of that name.
        names: of the adapter that runs on each clip of the batch, in place of ``active``.
        disabled: how many callers want none to run at present.
        through: calls an adapter with tokens, in place of its own call.
        before_mlp: the block's forward, to be given the adapter before its MLP, where there is one.
        around: what a memory policy does around the block.
        own_forward: a forward that the block, and not its class, had before.
        is_checkpointed: whether to heed the block's ``gradient_checkpointing``, which transformers heeds in training
            mode only, and a frozen block is never in it.
    """

    adapters: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    active: str | None = None
    names: tuple[str, ...] | None = None
    disabled: int = 0
    through: Callable[[Any, Tensor], Tensor] | None = None
    before_mlp: Callable[..., Tensor] | None = None
    around: Around | None = None
    own_forward: Callable[..., Any] | None = None
    is_checkpointed: bool = False


def put_adapters(
    block: nn.Module, adapters: Mapping[str, nn.Module], before_mlp: Callable[..., Tensor] | None, name: str = DEFAULT
) -> None:
    """Make ``adapters``, by position, children of ``block``; those of other names stay, and one of them runs."""
    state = _state(block)
    state.adapters[name] = {position: child_name(position, name) for position in adapters}
    for position, adapter in adapters.items():
        block.add_module(state.adapters[name][position], adapter)
    state.before_mlp = before_mlp or state.before_mlp


def child_name(position: str, name: str) -> str:
    """What the block's child at ``position`` is called, of the adapter ``name``."""
    return CHILDREN[position] if name == DEFAULT else f"{CHILDREN[position]}__{name}"


def split_child_name(child: str) -> tuple[str, str] | None:
    """What the block's child ``child`` would be called of the default adapter, and the name of its adapter; None where
    it is no adapter."""
    base, _, name = child.partition("__")
    return (base, name or DEFAULT) if base in CHILDREN.values() else None


def check_name(name: str) -> None:
    """Raise `InputError` unless an adapter can have that name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of an adapter: it is 1 to 64 letters, digits, '_' and '-'")


def common_name(name: str, adapter: str) -> str | None:
    """What a parameter or setting is called in a backbone with the default adapter alone; None where it belongs to
    another one than ``adapter``."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if (child := split_child_name(part)) is not None:
            parts[i] = child[0]
            return ".".join(parts) if child[1] == adapter else None
    return name


def heed_checkpointing(block: nn.Module) -> None:
    """Let transformers' ``gradient_checkpointing_enable()`` have its effect on a frozen ``block``."""
    if hasattr(block, "gradient_checkpointing"):
        _state(block).is_checkpointed = True


def take_adapters(block: nn.Module, name: str | None = None) -> None:
    """Take the adapter ``name`` out of ``block``; None is all of them, with what came with them."""
    state = get_state(block)
    if state is None:
        return
    for taken in list(state.adapters) if name is None else {name} & state.adapters.keys():
        for child in state.adapters.pop(taken).values():
            delattr(block, child)
    if not any("mlp" in children for children in state.adapters.values()):
        state.before_mlp = None
    if name is None:
        state.active, state.is_checkpointed = None, False
    _drop_if_plain(block)


def set_around(block: nn.Module, around: Around | None) -> None:
    """Run ``block`` and its adapters within ``around``; None runs them as they are."""
    if around is None and get_state(block) is None:
        return
    _state(block).around = around
    _drop_if_plain(block)


def adapters_of(block: nn.Module, name: str | None) -> list[Any]:
    """The adapters of that name in ``block``."""
    state = get_state(block)
    return [] if state is None else [block._modules[child] for child in state.adapters.get(name or "", {}).values()]


def get_state(block: nn.Module) -> BlockState | None:
    """The state of a block that is different from its class."""
    return block.__dict__.get("fe_state")


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The tokens that a block is called with: they come first, also by name."""
    return args[0] if args else next(iter(kwargs.values()))


def with_first_argument(tokens: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a block with other tokens."""
    return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): tokens})


def _state(block: Any) -> BlockState:
    state = get_state(block)
    if state is None:
        state = block.fe_state = BlockState(own_forward=block.__dict__.pop("forward", None))
        override_forward(block, _run)
    return state


def _drop_if_plain(block: Any) -> None:
    state = block.fe_state
    if state.adapters or state.around is not None or state.is_checkpointed:
        return
    restore_forward(block, _run)
    del block.fe_state
    if state.own_forward is not None:
        block.forward = state.own_forward


def _run(block: Any, own: Callable, *args: Any, **kwargs: Any) -> Any:
    state = getattr(block, "fe_state", None)
    if state is None:  # it was taken off while another subclass, such as FSDP2's, was above ours
        return own(block, *args, **kwargs)
    if state.is_checkpointed and block.gradient_checkpointing and not block.training and torch.is_grad_enabled():
        run = functools.partial(_adapters_and_block, block, own)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    if state.around is None:
        return _adapters_and_block(block, own, *args, **kwargs)
    return state.around(functools.partial(_adapters_and_block, block, own), block, args, kwargs)


def _adapters_and_block(block: Any, own: Callable, *args: Any, **kwargs: Any) -> Any:
    state = block.fe_state
    adapter = _adapter(block, state, "attn")
    if adapter is not None:
        args, kwargs = with_first_argument(adapter(first_argument(args, kwargs)), args, kwargs)
    adapter = None if state.before_mlp is None else _adapter(block, state, "mlp")
    if adapter is not None:
        return state.before_mlp(block, adapter, *args, **kwargs)
    if state.own_forward is not None:
        return state.own_forward(*args, **kwargs)
    return own(block, *args, **kwargs)


def _adapter(block: Any, state: BlockState, position: str) -> Callable[[Tensor], Tensor] | None:
    """What is to be done to the tokens there."""
    if state.disabled:
        return None
    if state.names is not None:
        wanted = any(position in state.adapters.get(name, ()) for name in state.names)
        return functools.partial(_each_its_own, block, state, position) if wanted else None
    child = state.adapters.get(state.active or "", {}).get(position)
    if child is None:
        return None
    adapter = block._modules[child]  # an attribute of a module takes the host several times as long to find
    return adapter if state.through is None else functools.partial(state.through, adapter)


def _each_its_own(block: Any, state: BlockState, position: str, tokens: Tensor) -> Tensor:
    """Tokens ``(B*T, L, D)``, the clips of each name through the adapter of that name; its clips run as one batch."""
    names = state.names
    assert names is not None
    if tokens.shape[0] % len(names):
        raise InputError(f"{len(names)} adapter names for {tokens.shape[0]} frames; give one name for each clip")
    clips = tokens.unflatten(0, (len(names), -1))  # (B, T, L, D)
    out = clips.clone()
    for name in dict.fromkeys(names):
        child = state.adapters.get(name, {}).get(position)
        if child is not None:
            rows = torch.tensor([i for i, other in enumerate(names) if other == name], device=tokens.device)
            out = out.index_copy(0, rows, getattr(block, child)(clips[rows]))
    return out.flatten(0, 1)
