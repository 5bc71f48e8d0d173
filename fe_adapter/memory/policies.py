"""What a training step keeps in memory: named policies, put on the blocks of an image transformer and taken off again.

For backward a frozen block keeps eleven tensors of the backbone's width a token: GELU's input 4, q, k and v 3, inputs
of two norms 2, attention's output 1, the adapter's input 1; and the adapter's hidden, ½. A policy keeps fewer:

    selective     keep the block's input, attention and its projections (6); run the rest again in backward
    full          keep the block's input (1); run the block and its adapters again
    offload       as full, and the input waits in the host's memory (0)
    budget=0.3    keep that share of all that the block's operators make (``none`` keeps about 0.6); xFormers' solver
                  finds what is slow to make again, on a GPU
    gelu2bit      keep two bits an element of GELU's input (its 4 become ¼ in bf16); its gradient is approximate
    recompute_hidden, recompute_input    what adapters keep, as `recompute` of `fe_adapter.functional.adapter`
    bf16          frozen weights in bfloat16, and with them all that a block keeps
    int8, nf4     frozen linear layers in eight or four bits, by bitsandbytes
    xformers      attention by xFormers' kernels, on a GPU; keeps as much as PyTorch's

``selective``, ``full``, ``offload`` and ``budget`` exclude each other on a block; the rest adds up. The gradients stay
those of the numbers a run computes with, but for ``gelu2bit`` (and half an ulp of the adapter's output with
``recompute_input``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks, unwrapped
from fe_adapter.backbones.describe import describe_backbone
from fe_adapter.checks import check_count
from fe_adapter.errors import InputError
from fe_adapter.memory import frozen_weights, xformers
from fe_adapter.memory.checkpointing import CHECKPOINTS, Checkpoint
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.blocks import get_state, set_around
from fe_adapter.models.forwards import override_forward, restore_forward
from fe_adapter.ops.gelu2bit import gelu2bit, kind_of_gelu

RECOMPUTES = {"recompute_hidden": "hidden", "recompute_input": "input"}
OF_BLOCKS = (*CHECKPOINTS, "gelu2bit", *RECOMPUTES)
OF_WEIGHTS = ("bf16", *frozen_weights.QUANTIZED)  # cannot be taken off again
APPROXIMATE = ("gelu2bit",)
NEED_GPU = ("budget", "xformers")
POLICIES = ("none", *OF_BLOCKS, *OF_WEIGHTS, "xformers")


def apply_memory_policy(
    model: nn.Module, policy: str | Sequence[str], blocks: Iterable[int] | None = None
) -> nn.Module:
    """Choose what a training step of ``model`` keeps in memory; what it computes stays the same (see the module).

    Policies add to those put on before. "none", which comes first, takes them all off, but for ``bf16``, ``int8`` and
    ``nf4``: the weights they rounded are gone.

    Args:
        model: a `VideoClassifier`, or an image transformer, adapted or not; changed in place. A policy that recomputes
            works on blocks that train, too.
        policy: names joined by "+", or several of them. After a colon, a name takes the blocks it is for, from 0, both
            ends included: ``"gelu2bit+full:0-7"``, ``"full:0,2,4"``.
        blocks: those of the names without a colon; None is all.

    Returns:
        ``model`` itself.

    Raises:
        InputError: an unknown name, blocks that do not exist, policies that exclude each other, no GELU in the blocks,
            a library that is not installed, or frozen weights asked for where they train.

    Example:
        >>> apply_memory_policy(classifier, "bf16+gelu2bit+full:0-7")
    """
    for name, vit, here in check_memory_policy(model, policy, blocks):  # all of it before anything is changed
        if name == "none":
            _take_off(vit, here)
        elif _base(name) in CHECKPOINTS:
            for block in here:
                set_around(block, Checkpoint(name))
        elif name == "gelu2bit":
            for block in here:
                _set_gelu2bit(block, True)
        elif name in RECOMPUTES:
            for block in here:
                for adapter in get_adapters(block):
                    adapter.recompute = RECOMPUTES[name]
        elif name == "xformers":
            xformers.use(vit)
        else:
            frozen_weights.convert(vit, name)
    return model


def check_memory_policy(
    model: nn.Module, policy: str | Sequence[str], blocks: Iterable[int] | None = None
) -> list[tuple[str, nn.Module, list[nn.Module]]]:
    """What `apply_memory_policy` would do, nothing of which is done: each name with the transformer and its blocks.

    Raises:
        InputError: as `apply_memory_policy`.
    """
    vit, all_blocks = _find_blocks(model)
    chosen = None if blocks is None else tuple(check_count("blocks", i, 0) for i in blocks)
    wanted = [(name, where, _indices(name, where, chosen, len(all_blocks))) for name, where in parse_policy(policy)]
    _refuse_conflicts([(name, indices) for name, _, indices in wanted])
    for name, where, indices in wanted:
        _refuse(vit, name, where is not None or chosen is not None, [all_blocks[i] for i in indices])
    return [(name, vit, [all_blocks[i] for i in indices]) for name, _, indices in wanted]


def replace_memory_policy(model: nn.Module, policy: str) -> nn.Module:
    """Take off the policies that ``model`` has, and apply ``policy``; see `apply_memory_policy`."""
    starts_anew = parse_policy(policy)[0][0] == "none"
    return apply_memory_policy(model, policy if starts_anew else f"none+{policy}")


def parse_policy(policy: str | Sequence[str]) -> list[tuple[str, str | None]]:
    """``"gelu2bit+budget=0.3:0-7"`` as ``[("gelu2bit", None), ("budget=0.3", "0-7")]``.

    Raises:
        InputError: a name that is no policy.
    """
    parts = [policy] if isinstance(policy, str) else list(policy) if isinstance(policy, Sequence) else [policy]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise InputError(f"memory policy {policy!r} is no name, nor a list of names")
    items: list[tuple[str, str | None]] = []
    for item in (item.strip() for part in parts for item in part.split("+")):
        name, colon, where = item.partition(":")
        if _base(name) not in POLICIES:
            raise InputError(f"memory policy {name!r} is none of {', '.join(POLICIES)}")
        if (_base(name) == "budget") != ("=" in name) or not _is_share(name):
            raise InputError(f"memory policy {name!r}: it is budget that takes a share, from 0 to 1, as in budget=0.3")
        if name == "none" and items:
            raise InputError("memory policy 'none' takes off what is there already; it can only come first")
        items.append((name, where if colon else None))
    return items


def is_in_bf16(policy: str | None) -> bool:
    """Whether a policy freezes the backbone in bf16, where autocast would only cost memory."""
    return policy is not None and any(name == "bf16" for name, _ in parse_policy(policy))


def needs_host(policy: str) -> bool:
    """Whether a policy lets blocks wait in the host's memory, which no CUDA graph does."""
    return any(name == "offload" for name, _ in parse_policy(policy))


def is_compilable(policy: str | None) -> bool:
    """Whether `torch.compile` takes a policy; it has a budget of its own."""
    return policy is None or all(_base(name) != "budget" for name, _ in parse_policy(policy))


def moves_to_host(model: nn.Module) -> bool:
    """Whether blocks of ``model`` wait in the host's memory, by policy ``offload``."""
    arounds = (state.around for module in model.modules() if (state := get_state(module)) is not None)
    return any(isinstance(around, Checkpoint) and around.kind == "offload" for around in arounds)


def check_device(policy: str | None) -> None:
    """Raise `InputError` for a policy that could not run here: it needs a GPU, and there is none."""
    for name, _ in [] if policy is None else parse_policy(policy):
        if _base(name) in NEED_GPU and not torch.cuda.is_available():
            raise InputError(f"memory policy {_base(name)!r} needs a GPU")


def _base(name: str) -> str:
    """A policy's name without its share."""
    return name.partition("=")[0]


def _is_share(name: str) -> bool:
    try:
        return 0 <= float(name.partition("=")[2] or 0) <= 1
    except ValueError:
        return False


def _find_blocks(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    for module in model.modules():
        adaptation = module.__dict__.get("fe_adaptation")
        if adaptation is not None:
            return module, get_blocks(module, adaptation.blocks_path)
    vit: Any = unwrapped(model)
    if type(vit).__name__ == "VideoClassifier":  # without adapters
        vit = unwrapped(vit.vit)
    return vit, get_blocks(vit, describe_backbone(vit).blocks_path)


def _indices(name: str, where: str | None, chosen: tuple[int, ...] | None, num_blocks: int) -> list[int]:
    indices: list[int] = list(range(num_blocks)) if chosen is None else list(chosen)
    if where is not None:
        try:
            indices = [i for part in where.split(",") for i in _range(part, num_blocks)]
        except ValueError:
            raise InputError(
                f"memory policy {name}:{textwrap.shorten(where, 80)}: blocks are written 0-7 or 0,2,4"
            ) from None
    if not indices:
        raise InputError(f"memory policy {name!r} is given no blocks: write the first one first, as in {name}:0-7")
    for i in indices:
        if not 0 <= i < num_blocks:
            raise InputError(f"memory policy {name!r} names block {i}, but the model has {num_blocks} blocks")
    return indices


def _range(part: str, num_blocks: int) -> Iterator[int]:
    first, dash, last = part.partition("-")
    start, end = int(first), int(last if dash else first)
    yield from range(start, min(end, max(start, num_blocks)) + 1)  # one beyond the last block is enough to refuse


def _refuse(vit: nn.Module, name: str, has_blocks: bool, here: list[nn.Module]) -> None:
    if has_blocks and name in (*OF_WEIGHTS, "xformers", "none"):
        raise InputError(f"memory policy {name!r} is for the whole model; it takes no blocks")
    if name == "gelu2bit" and not any(kind_of_gelu(module) for block in here for module in block.modules()):
        raise InputError("memory policy 'gelu2bit': no block has a GELU (a SwiGLU, say, is none)")
    if name in OF_WEIGHTS:
        frozen_weights.check(vit, name)
    if name == "xformers":
        xformers.check(vit)
    if _base(name) == "budget":
        xformers.check_solver()


def _refuse_conflicts(wanted: list[tuple[str, list[int]]]) -> None:
    for group in (CHECKPOINTS, tuple(RECOMPUTES), frozen_weights.QUANTIZED):
        taken: dict[int, str] = {}
        for name, indices in wanted:
            for i in indices if _base(name) in group else ():
                if taken.setdefault(i, name) != name:
                    raise InputError(f"memory policies {taken[i]!r} and {name!r} exclude each other on block {i}")


def _set_gelu2bit(block: nn.Module, wanted: bool) -> None:
    """Make GELUs of ``block`` keep two bits an element, or what they kept before."""
    for module in block.modules():
        if kind_of_gelu(module) is not None:
            restore_forward(module, _gelu2bit_forward)
            if wanted:
                override_forward(module, _gelu2bit_forward)


def _gelu2bit_forward(module: nn.Module, own: Any, x: Tensor) -> Tensor:
    kind = kind_of_gelu(module)
    assert kind is not None
    return gelu2bit(x, kind)


def _take_off(vit: nn.Module, blocks: list[nn.Module]) -> None:
    adaptation = getattr(vit, "fe_adaptation", None)
    for block in blocks:
        set_around(block, None)
        _set_gelu2bit(block, False)
        state = get_state(block)
        for name, children in {} if state is None else state.adapters.items():
            for child in children.values():
                getattr(block, child).recompute = None if adaptation is None else adaptation.configs[name].recompute
    xformers.undo(vit)
