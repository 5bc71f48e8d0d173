"""Several adapters on one backbone, by name: one of them is active, or each clip of a batch has its own.

The adapter that `adapt` makes is called "default". The active one runs, trains and is saved; the others are frozen and
keep their values. In a `VideoClassifier` each has a head and class names of its own, and what the classifier says of
itself (``head``, ``class_names``, ``temperature``, …) is what belongs to the active one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fe_adapter.backbones.backbone import get_blocks, plain_name, unwrapped
from fe_adapter.config import FEAdapterConfig
from fe_adapter.errors import InputError
from fe_adapter.layers import FEAdapter
from fe_adapter.models.adaptation import Adaptation, get_adaptation, prepared
from fe_adapter.models.blocks import BlockState, adapters_of, check_name, get_state, split_child_name, take_adapters
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.origin import get_origin, settings_of
from fe_adapter.models.task import Task


def list_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters in ``model``, in the order in which they came."""
    return tuple(get_adaptation(_parts(model)[0]).configs)


def active_adapter(model: nn.Module) -> str:
    """The name of the adapter that runs, trains and is saved."""
    return get_adaptation(_parts(model)[0]).active


def add_adapter(
    model: nn.Module,
    name: str,
    config: FEAdapterConfig | None = None,
    *,
    class_names: Sequence[str] | None = None,
    temporal_pool: str | None = None,
) -> nn.Module:
    """Put one more adapter into an adapted ``model``, in place: fresh, and not active until `set_adapter` says so.

    Args:
        model: an adapted backbone, or a `VideoClassifier` around one; compiled and wrapped ones, too.
        name: of letters, digits, ``_`` and ``-``; not taken.
        config: which adapters and where; None is that of the active one.
        class_names: of a classifier's fresh head; None is those of the active one.
        temporal_pool: how a classifier pools frames for it; None is as for the active one.

    Returns:
        ``model`` itself.

    Raises:
        InputError: a name that is taken or none, a config that does not fit, class names without a classifier.
    """
    vit, classifier = _parts(model)
    adaptation = get_adaptation(vit)
    check_name(name)
    if name in adaptation.configs:
        raise InputError(f"the model has an adapter {name!r} already; delete it first, or take another name")
    if classifier is None and (class_names is not None or temporal_pool is not None):
        raise InputError("class_names and temporal_pool are a classifier's; give the VideoClassifier, not its backbone")
    config = adaptation.config if config is None else config
    if not isinstance(config, FEAdapterConfig):
        raise TypeError(f"config is a {type(config).__name__}; pass an FEAdapterConfig")
    task = None if classifier is None else classifier.new_task(class_names, temporal_pool)
    put = prepared(vit, adaptation, config)
    put(name)
    like = next(_adapters(vit, adaptation.active))
    dtype = like.down_proj.weight.dtype
    for adapter in _adapters(vit, name):
        adapter.to(dtype=dtype).train(like.training)
    _let_train(vit, name, False)
    if classifier is not None and task is not None:
        classifier.put_by[Task.key(name)] = task.train(classifier.training).requires_grad_(False)
    _follow(vit, {**adaptation.configs, name: config})
    origin = get_origin(vit)
    origin.settings |= {key: value for key, value in settings_of(vit).items() if _name_in(key) == name}
    return model


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Let the adapter ``name`` be the active one: it runs, its parameters ask for gradients, those of others do not.

    Make the optimizer, and wrap the model for several processes, afterwards. What `torch.compile` has made for a name
    is used again whenever that name is active. What peft has frozen (it freezes all that is not its own) trains again.

    Raises:
        InputError: there is no such adapter, or none with a head in this classifier.
    """
    vit, classifier = _parts(model)
    adaptation = _with(vit, name)
    if classifier is not None:
        other = classifier.task(name)
        if isinstance(other, Task):
            assert classifier.adapter is not None
            del classifier.put_by[Task.key(name)]
            classifier.put_by[Task.key(classifier.adapter)] = Task.of(classifier).requires_grad_(False)
            other.put_into(classifier)
            classifier.adapter = name
        for module in (classifier.head, classifier.pool):
            if module is not None:
                module.requires_grad_(True)
    for state in _states(vit):
        state.active = name
    for other_name in adaptation.configs:
        _let_train(vit, other_name, other_name == name)
    vit.fe_adaptation = dataclasses.replace(adaptation, active=name)  # type: ignore[assignment]
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Take the adapter ``name`` out of ``model``, with its head.

    Raises:
        InputError: there is no such adapter, or it is the active one.
    """
    vit, classifier = _parts(model)
    adaptation = _with(vit, name)
    if name == adaptation.active or (classifier is not None and name == classifier.adapter):
        raise InputError(f"{name!r} is the active adapter; set another one first, or take all out by unadapt")
    for block in get_blocks(vit, adaptation.blocks_path):
        take_adapters(block, name)
    if classifier is not None and Task.key(name) in classifier.put_by:
        del classifier.put_by[Task.key(name)]
    _follow(vit, {other: config for other, config in adaptation.configs.items() if other != name})
    origin = get_origin(vit)
    origin.settings = {key: value for key, value in origin.settings.items() if _name_in(key) != name}
    return model


@contextlib.contextmanager
def use_adapters(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the block each clip of a batch has the adapter of its own name, and its head: for prediction.

    The logits are those that the clips of each name have as a batch of their own. Of classes all heads used have the
    same number.

    Args:
        model: an adapted backbone, or a `VideoClassifier`.
        names: one for each clip of the batches that are to come.

    Raises:
        InputError: there is no such adapter; heads of different numbers of classes; or, in a forward, another number of
            clips.

    Example:
        >>> with use_adapters(model, ["default", "night", "default"]):
        ...     logits = model(video)  # (3, T, 3, h, w)
    """
    vit, classifier = _parts(model)
    if isinstance(names, str) or not names:
        raise InputError(f"names={names!r} must be a list with the name of an adapter for each clip")
    for name in dict.fromkeys(names):
        _with(vit, name)
    if classifier is not None:
        sizes = {name: len(classifier.task(name).class_names) for name in dict.fromkeys(names)}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
            raise InputError(f"the adapters' heads have different numbers of classes ({said}); run a batch for each")
    holders: list[Any] = [*_states(vit), *([] if classifier is None else [classifier])]
    before = [holder.names for holder in holders]
    for holder in holders:
        holder.names = tuple(names)
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.names = value


def _name_in(key: str) -> str | None:
    """Whose adapter's a setting is."""
    return next((child[1] for part in key.split(".") if (child := split_child_name(part)) is not None), None)


def _parts(model: nn.Module) -> tuple[nn.Module, VideoClassifier | None]:
    """The adapted backbone in ``model``, and the classifier around it; peft's model may be around both."""
    inner = unwrapped(model)
    classifier = next((module for module in inner.modules() if isinstance(module, VideoClassifier)), None)
    vit = next((module for module in inner.modules() if "fe_adaptation" in module.__dict__), inner)
    get_adaptation(vit)  # says so where there is none
    return vit, classifier


def _with(vit: nn.Module, name: str) -> Adaptation:
    adaptation = get_adaptation(vit)
    if name not in adaptation.configs:
        raise InputError(f"the model has no adapter {name!r}; it has {', '.join(map(repr, adaptation.configs))}")
    return adaptation


def _states(vit: nn.Module) -> list[BlockState]:
    states = map(get_state, get_blocks(vit, get_adaptation(vit).blocks_path))
    return [state for state in states if state is not None]


def _adapters(vit: nn.Module, name: str) -> Iterator[FEAdapter]:
    for block in get_blocks(vit, get_adaptation(vit).blocks_path):
        yield from adapters_of(block, name)


def _let_train(vit: nn.Module, name: str, wanted: bool) -> None:
    for adapter in _adapters(vit, name):
        adapter.requires_grad_(wanted)


def _follow(vit: nn.Module, configs: dict[str, FEAdapterConfig]) -> None:
    """Let the adaptation say what adapters there are now."""
    adaptation = get_adaptation(vit)
    of_adapters = {n for n in map(plain_name, vit.state_dict()) if _name_in(n) is not None}
    of_backbone = {n for n in adaptation.parameter_names if _name_in(n) is None}
    vit.fe_adaptation = dataclasses.replace(  # type: ignore[assignment]
        adaptation, configs=configs, parameter_names=frozenset(of_adapters | of_backbone)
    )
