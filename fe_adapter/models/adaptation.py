"""Put adapters into a frozen image transformer, and take them out again.

Before self-attention an adapter is a child ``fe_adapter`` of its block and replaces its input. Before the MLP it
is ``fe_adapter_mlp``, called by a forward written for the block's kind. Backbone parameters keep their names. Copies of
an adapted model, deep or pickled, are independent of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks, plain_name, unwrapped
from fe_adapter.backbones.describe import describe_backbone, forward_with_mlp_adapter
from fe_adapter.checks import Dilation, check_count, check_kernel_size
from fe_adapter.config import FEAdapterConfig
from fe_adapter.errors import InputError
from fe_adapter.layers import FEAdapter, FusedFEAdapter
from fe_adapter.models.blocks import (
    DEFAULT,
    adapters_of,
    check_name,
    get_state,
    heed_checkpointing,
    put_adapters,
    set_around,
    take_adapters,
)
from fe_adapter.models.forwards import restore_forwards
from fe_adapter.models.origin import remember

_log = logging.getLogger("fe_adapter")


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What `adapt` did to a model; kept on it as ``fe_adaptation``."""

    configs: Mapping[str, FEAdapterConfig]  # by the name of the adapter
    active: str  # the name of the adapter that runs, trains and is saved
    num_frames: int
    blocks_path: str
    embed_dim: int
    num_prefix_tokens: int
    grid_size: tuple[int, int] | None
    patch_size: tuple[int, int] | None
    trained_before: frozenset[str]  # parameters that asked for a gradient
    training_before: frozenset[str]  # modules in training mode
    parameter_names: frozenset[str]  # of backbone and adapters

    @property
    def config(self) -> FEAdapterConfig:
        """Of the active adapter."""
        return self.configs[self.active]


def adapt(
    vit: nn.Module,
    config: FEAdapterConfig | None = None,
    *,
    num_frames: int,
    blocks_path: str | None = None,
    embed_dim: int | None = None,
    num_prefix_tokens: int | None = None,
    grid_size: tuple[int, int] | None = None,
    name: str = DEFAULT,
) -> nn.Module:
    """Freeze ``vit`` and put a temporal adapter in front of its blocks, in place.

    A freshly adapted model computes what it computed before, bit for bit, until the adapters are trained. Its input
    becomes the frames of clips one after another, ``(B*T, 3, h, w)``. The backbone stays in evaluation mode under
    ``vit.train()``; blocks before the first adapter run without a graph, since nothing in them is trainable.

    Args:
        vit: image transformer of timm, transformers, open_clip or torchvision, or any other with the arguments below.
        config: which adapters and where; None is ``FEAdapterConfig()``.
        num_frames: frames T of a clip; `set_num_frames` changes it.
        blocks_path: attribute path of the list of blocks, each of which takes tokens ``(B*T, L, D)`` first.
        embed_dim: width D.
        num_prefix_tokens: class and register tokens P in front of the patches.
        grid_size: patches ``(H, W)``; needed only by kernels with a spatial extent.
        name: of the adapter, beside which `add_adapter` may put others.

    Returns:
        ``vit`` itself.

    Raises:
        InputError: the model cannot be adapted, is adapted already, or has no such blocks.
    """
    given, vit = vit, unwrapped(vit)
    if hasattr(vit, "fe_adaptation"):
        raise InputError("the model is adapted already; call unadapt first, or add_adapter for one more")
    config = FEAdapterConfig() if config is None else config
    if not isinstance(config, FEAdapterConfig):
        raise TypeError(f"config is a {type(config).__name__}; pass an FEAdapterConfig")
    num_frames = check_count("num_frames", num_frames, 1)
    check_name(name)
    if any(type(module).__module__.startswith("peft.") for module in vit.modules()):
        raise InputError(
            "the model holds layers of peft (LoRA, say), which adapt would freeze; adapt it first, then add them"
        )
    patch_size = None
    if blocks_path is None:
        found = describe_backbone(vit)
        is_fixed = not getattr(vit, "dynamic_img_size", False)  # or the grid is that of the images it will be given
        given_sizes = {"embed_dim": embed_dim, "num_prefix_tokens": num_prefix_tokens}
        for size, value in (given_sizes | ({"grid_size": grid_size} if is_fixed else {})).items():
            if value not in (None, getattr(found, size)):
                raise InputError(f"{size}={value!r}, but the model has {getattr(found, size)}; leave {size} out")
        blocks_path, patch_size = found.blocks_path, found.patch_size
        embed_dim = found.embed_dim if embed_dim is None else embed_dim
        num_prefix_tokens = found.num_prefix_tokens if num_prefix_tokens is None else num_prefix_tokens
        grid_size = found.grid_size if grid_size is None else grid_size
    elif embed_dim is None or num_prefix_tokens is None:
        raise InputError("with blocks_path, give embed_dim and num_prefix_tokens as well")
    before: dict[str, Any] = {
        "trained_before": frozenset(plain_name(name) for name, p in vit.named_parameters() if p.requires_grad),
        "training_before": frozenset(plain_name(f"{name}.") for name, part in vit.named_modules() if part.training),
    }
    adaptation = Adaptation(
        configs={name: config},
        active=name,
        num_frames=num_frames,
        blocks_path=blocks_path,
        embed_dim=embed_dim,
        num_prefix_tokens=num_prefix_tokens,
        grid_size=grid_size,
        patch_size=patch_size,
        parameter_names=frozenset(),
        **before,
    )
    put = prepared(vit, adaptation, config)  # before the model is touched
    vit.requires_grad_(False)
    put(name)
    names = frozenset(map(plain_name, vit.state_dict()))
    vit.fe_adaptation = dataclasses.replace(adaptation, parameter_names=names)  # type: ignore[assignment]
    remember(vit)
    vit.train = functools.partial(_train_adapters_only, vit)  # type: ignore[method-assign]
    vit.train(vit.training)
    return given


def prepared(vit: nn.Module, adaptation: Adaptation, config: FEAdapterConfig) -> Callable[[str], None]:
    """Build the adapters of ``config`` for ``vit``, which is not touched: what is returned puts them in, by a name.

    Raises:
        InputError: they do not fit the model.
    """
    blocks = get_blocks(vit, adaptation.blocks_path)
    indices = _indices(config.blocks, len(blocks))
    chosen = [blocks[i] for i in indices]
    if len({id(block) for block in chosen}) < len(chosen):
        raise InputError("one block is in the model several times; it cannot hold several adapters")
    forwards = [_forward_before_mlp(block) if "mlp" in config.positions else None for block in chosen]
    _warn_if_input_is_not_shared(config, vit)
    spatial = check_kernel_size(config.kernel_size)[1:] != (1, 1)
    parameter = next(vit.parameters())

    def build(dilation: Dilation) -> FusedFEAdapter:
        return FusedFEAdapter(
            adaptation.embed_dim,
            config.bottleneck,
            num_frames=adaptation.num_frames,
            kernel_size=config.kernel_size,
            dilation=dilation,
            max_dilation=config.max_dilation,
            causal=config.causal,
            activation=config.activation,
            num_prefix_tokens=adaptation.num_prefix_tokens,
            grid_size=adaptation.grid_size if spatial else None,
            recompute=config.recompute,
            backend=config.backend,
            device=parameter.device,
            dtype=torch.float64 if parameter.dtype == torch.float64 else torch.float32,
        )

    dilations = config.dilations(len(chosen))
    adapters = [{position: build(d) for position in config.positions} for d in dilations]

    def put(name: str) -> None:
        for block, forward, by_position in zip(chosen, forwards, adapters, strict=True):
            put_adapters(block, by_position, forward, name)
        for block in blocks[indices[0] :]:
            heed_checkpointing(block)
        for block in blocks:
            state = get_state(block)
            if state is not None:
                state.active = adaptation.active
        if spatial and adaptation.patch_size is not None and _follow_grid not in vit._forward_pre_hooks.values():
            vit.register_forward_pre_hook(_follow_grid, with_kwargs=True)

    return put


def unadapt(vit: nn.Module) -> nn.Module:
    """Take the adapters out of ``vit``, in place, and give it back as it was before `adapt`, memory policies taken off.

    Raises:
        InputError: ``vit`` is not adapted.
    """
    given, vit, adaptation = vit, unwrapped(vit), get_adaptation(vit)
    for block in get_blocks(vit, adaptation.blocks_path):
        set_around(block, None)
        take_adapters(block)
        restore_forwards(block)
    for key in [key for key, hook in vit._forward_pre_hooks.items() if hook is _follow_grid]:
        del vit._forward_pre_hooks[key]
        vit._forward_pre_hooks_with_kwargs.pop(key, None)
    del vit.fe_adaptation, vit.fe_origin
    del vit.train
    for name, p in vit.named_parameters():
        p.requires_grad_(plain_name(name) in adaptation.trained_before)
    for name, module in vit.named_modules():
        module.training = plain_name(f"{name}.") in adaptation.training_before
    return given


@contextlib.contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within the block ``model`` computes as if it had no adapters, in every thread; they stay where they are."""
    states = [state for module in model.modules() if (state := get_state(module)) is not None]
    for state in states:
        state.disabled += 1
    try:
        yield
    finally:
        for state in states:
            state.disabled -= 1


def set_num_frames(model: nn.Module, num_frames: int) -> None:
    """Tell every adapter in ``model`` that clips have ``num_frames`` frames from now on."""
    num_frames = check_count("num_frames", num_frames, 1)
    for adapter in get_adapters(model):
        adapter.num_frames = num_frames
    for module in model.modules():
        if "fe_adaptation" in module.__dict__:  # which is what is saved
            module.fe_adaptation = dataclasses.replace(get_adaptation(module), num_frames=num_frames)  # type: ignore[assignment]


def get_adapters(model: nn.Module) -> list[FEAdapter]:
    """The adapters in ``model``, in the order in which they run."""
    return [module for module in model.modules() if isinstance(module, FEAdapter)]


def active_adapters(vit: nn.Module) -> Iterator[Any]:
    """The adapters that run in the adapted ``vit``: asked of its blocks alone, and not of all that is in it."""
    for block in get_blocks(vit, get_adaptation(vit).blocks_path):
        state = get_state(block)
        if state is not None:
            for name in dict.fromkeys(state.names or (state.active,)):
                yield from adapters_of(block, name)


def get_adaptation(vit: nn.Module) -> Adaptation:
    """What `adapt` did to ``vit``.

    Raises:
        InputError: ``vit`` is not adapted.
    """
    adaptation = getattr(unwrapped(vit), "fe_adaptation", None)
    if adaptation is None:
        raise InputError(f"this {type(vit).__name__} has no adapters; call adapt first")
    return adaptation


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, for an optimizer."""
    return [p for p in model.parameters() if p.requires_grad]


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters train: the adapters', their dilation predictors', and others such as a head's."""
    print(trainable_summary(model))


def trainable_summary(model: nn.Module) -> str:
    """The line that `print_trainable_parameters` prints."""
    total = sum(p.numel() for p in model.parameters())
    adapters = {id(p) for adapter in get_adapters(model) for p in adapter.parameters()}
    counts = {"adapters": 0, "dilation": 0, "other": 0}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = "dilation" if "dilation_proj" in name else "adapters" if id(p) in adapters else "other"
            counts[kind] += p.numel()
    trained = sum(counts.values())
    parts = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    return f"trainable: {trained:,} of {total:,} parameters ({trained / max(1, total):.2%}): {parts}"


def _indices(chosen: tuple[int, ...] | None, num_blocks: int) -> list[int]:
    if chosen is None:
        return list(range(num_blocks))
    indices = set()
    for i in chosen:
        if not -num_blocks <= i < num_blocks:
            raise InputError(f"blocks={chosen} names block {i}, but the model has {num_blocks} blocks")
        indices.add(i % num_blocks)
    return sorted(indices)


def _forward_before_mlp(block: nn.Module) -> Any:
    if "forward" in block.__dict__:
        raise InputError(
            f"a {type(block).__name__} has a forward of its own, so that nothing can come between its "
            "attention and its MLP; use positions='attn'"
        )
    return forward_with_mlp_adapter(block)


def _warn_if_input_is_not_shared(config: FEAdapterConfig, vit: nn.Module) -> None:
    low_precision = next(vit.parameters()).dtype in (torch.bfloat16, torch.float16)
    fp32_norm = any(type(module).__name__ == "LayerNormFp32" for module in vit.modules())
    if config.recompute == "input" and (low_precision or fp32_norm):
        _log.warning(
            "recompute='input' shares the adapter's output with the next LayerNorm, but a norm that runs in another "
            "dtype keeps a copy of its own; recompute='hidden' may need less memory here"
        )


def _follow_grid(vit: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Spatial kernels follow the size of the images, where the backbone takes any size."""
    patch_height, patch_width = get_adaptation(vit).patch_size  # type: ignore[misc]
    images = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    for adapter in get_adapters(vit):
        adapter.grid_size = (images.shape[-2] // patch_height, images.shape[-1] // patch_width)


def _train_adapters_only(vit: nn.Module, mode: bool = True) -> nn.Module:
    type(vit).train(vit, False)
    for adapter in get_adapters(vit):
        adapter.train(mode)
    if mode and _are_frozen_by_peft(vit):
        _log.warning(
            "the adapters are frozen, as peft freezes all that is not its own; set_adapter(model, %r) lets them train",
            get_adaptation(vit).active,
        )
    return vit


def _are_frozen_by_peft(vit: nn.Module) -> bool:
    if any(p.requires_grad for adapter in active_adapters(vit) for p in adapter.parameters()):
        return False
    return any(type(module).__module__.startswith("peft.") for module in vit.modules())
