"""What goes into an adapter folder, and is refused where no folder could give it back."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import plain_name, unwrapped
from fe_adapter.distributed import full_tensor
from fe_adapter.errors import InputError, first_line, some
from fe_adapter.files import check_as, not_finite, read_as, read_json
from fe_adapter.memory import frozen_weights
from fe_adapter.models.adaptation import get_adaptation
from fe_adapter.models.blocks import DEFAULT, common_name
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.origin import (
    changed_tensors,
    get_origin,
    hooked_modules,
    is_of_adapter,
    other_settings,
    settings_of,
)
from fe_adapter.models.pooling import AttentionPool

if TYPE_CHECKING:
    from fe_adapter.sharing.schema import AdapterFolder

_log = logging.getLogger("fe_adapter")
FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PARTS = ("pool", "head")  # of a classifier, beside the backbone


def check_saveable(model: nn.Module) -> None:
    """Raise `InputError` where something in ``model`` would not be there, or be another, when it is loaded again."""
    _, tensors = content_of(model)
    check_finite({name: full_tensor(t) for name, t in tensors.items()})


def content_of(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of ``model`` as JSON values, and the tensors that are saved by the file's names.

    Raises:
        InputError: ``model`` has nothing to save, or something that no folder could give back.
    """
    classifier = model if isinstance(model, VideoClassifier) else None
    vit = model if classifier is None else classifier.vit
    if classifier is not None:
        _check_classifier(classifier)
    adapted = classifier is None or classifier.tune == "adapter"
    _check_parts(model, vit, (get_adaptation(vit) if adapted or classifier is None else classifier).parameter_names)
    origin = get_origin(vit)
    settings = settings_with(vit, origin.settings)
    description: dict[str, Any] = {"format_version": FORMAT_VERSION, "backbone_settings": settings}
    changed: set[str] = set()
    if classifier is None or not saves_backbone(classifier):
        trained, changed = also_trained(vit), set(changed_tensors(vit))
        description |= {"also_trained": sorted(trained)} if trained else {}
        description |= {"also_changed": sorted(changed)} if changed else {}
        if origin.tensors.keys() - trained - changed:  # or all of it is in the folder
            description["backbone_fingerprint"] = origin.fingerprint
    if classifier is None or classifier.tune != "full":
        description["frozen_weights"] = frozen_weights.kinds_of(vit)
    if classifier is not None:
        description |= {"classifier": classifier.describe(), "dtype": _dtype_of(classifier)}
        if classifier.backbone_name is not None:
            description["backbone"] = {
                "name": classifier.backbone_name,
                "args": classifier.backbone_args,
                "weights": classifier.backbone_weights,
            }
    if adapted:
        adaptation = get_adaptation(vit)
        description["adapter"] = dataclasses.asdict(adaptation.config)
        for name in ("num_frames", "embed_dim", "num_prefix_tokens"):
            description[name] = getattr(adaptation, name)
    _check_description(description)
    _warn_of_hooks(model, vit)
    tensors = saved_tensors(model, changed)
    if empty := [name for name, t in tensors.items() if t.is_meta]:
        raise InputError(f"{some(empty)} is on the meta device, where there is nothing to save")
    return description, tensors


def read_config(folder: Path) -> AdapterFolder:
    """What the config of an adapter folder says.

    Raises:
        InputError: there is none, or it is damaged, or newer than this release.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no adapter folder")
    file = folder / CONFIG_FILE
    content = read_json(file)
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise InputError(f"{file} does not say its format_version")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {version}, this release reads up to {FORMAT_VERSION}; update fe-adapter"
        )
    from fe_adapter.sharing.schema import AdapterFolder  # not before it is needed: the kernels' checks go without

    return read_as(AdapterFolder, file)


def saved_tensors(model: nn.Module, changed: Collection[str] = (), adapter: str | None = None) -> dict[str, Tensor]:
    """The tensors that go into the file, by the file's names; of the frozen backbone those that have ``changed``, of
    several adapters the one of that name (None is the active one) as if it were the only one."""
    classifier = model if isinstance(model, VideoClassifier) else None
    vit = model if classifier is None else classifier.vit
    name_of = _active(vit) if adapter is None else adapter
    state: dict[str, Tensor] = {}
    for own_name, t in vit.state_dict().items():
        if (name := common_name(plain_name(own_name), name_of)) is not None:
            state[name] = t
    if classifier is None or not saves_backbone(classifier):
        kept = {name for name in state if is_of_adapter(name)} | set(changed)
        state = {name: t for name, t in state.items() if name in kept} | also_trained(vit)
    named = {f"vit.{name}": t for name, t in state.items()}
    if classifier is None:
        return named
    task = classifier if adapter is None or classifier.tune != "adapter" else classifier.task(adapter)
    for part in _PARTS:
        module = getattr(task, part)
        named |= {} if module is None else {f"{part}.{name}": t for name, t in module.state_dict().items()}
    return named


def settings_with(vit: nn.Module, settings: dict[str, Any], adapter: str | None = None) -> dict[str, Any]:
    """``settings`` of a backbone as they would be with the adapter of that name alone; None is the active one."""
    name_of = _active(vit) if adapter is None else adapter
    named = ((common_name(key, name_of), value) for key, value in settings.items())
    return {key: value for key, value in named if key is not None}


def also_trained(vit: nn.Module) -> dict[str, Tensor]:
    """The parameters of the backbone itself that train."""
    parameters = {plain_name(name): p for name, p in vit.named_parameters() if p.requires_grad}
    return {name: p for name, p in parameters.items() if not is_of_adapter(name)}


def saves_backbone(model: VideoClassifier) -> bool:
    """Whether all of the backbone is saved: it trains, or its weights are random ones that nobody else has."""
    return model.tune == "full" or model.backbone_weights == "none"


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` where one of ``tensors`` holds NaN or infinite values."""
    if infinite := not_finite(tensors):
        raise InputError(
            f"{some(infinite)} holds NaN or infinite values, which are not saved; what was saved before stays"
        )


def _check_parts(model: nn.Module, vit: nn.Module, made: frozenset[str]) -> None:
    """Raise `InputError` unless the parameters are those ``made`` with the backbone and its modules compute as then."""
    state = {plain_name(name): t for name, t in vit.state_dict(keep_vars=True).items()}
    own = [f"vit.{name}" for name, t in state.items() if isinstance(t, nn.Parameter)]
    own += [name for name, _ in model.named_parameters() if model is not vit and not name.startswith("vit.")]
    heads = {"head.weight", "head.bias"}
    if isinstance(model, VideoClassifier) and model.temporal_pool == "attention":  # as it was made
        with torch.device("meta"):
            pool = AttentionPool(model.embed_dim, model.num_frames)
        heads |= {f"pool.{name}" for name, _ in pool.named_parameters()}
    own = [name for name in own if not name.startswith("put_by.")]  # of adapters that are not active
    came = set(own) - {f"vit.{name}" for name in made} - heads
    if came:
        raise InputError(
            f"{some(name for name in own if name in came)} came into the model after it was made (LoRA, say), so that "
            "no adapter folder could give it back; merge it or take it out first, or save it by the library that put "
            "it there"
        )
    gone = made - state.keys()
    if gone:
        raise InputError(
            f"{some(f'vit.{name}' for name in sorted(gone))} went out of the model after it was made; "
            "no adapter folder could say so"
        )
    if other := other_settings(get_origin(vit).settings, settings_of(vit)):
        raise InputError(
            f"the backbone has {some(other)} when it was made, which no adapter folder could give back; change it "
            "before adapters or a classifier are put to it"
        )


def _check_classifier(model: VideoClassifier) -> None:
    if type(model.head) is not nn.Linear or model.head.bias is None or type(model.dropout) is not nn.Dropout:
        raise InputError("the head is another one than the classifier made, which no adapter folder could give back")
    if tuple(model.head.weight.shape) != model.head_shape():
        raise InputError(
            f"the head has the shape {tuple(model.head.weight.shape)}; by class_names, num_frames and temporal_pool "
            f"it would be built again with {model.head_shape()}"
        )
    pools = AttentionPool if model.temporal_pool == "attention" else type(None)
    if type(model.pool) is not pools or (model.pool is not None and len(model.pool.positions) != model.num_frames):
        raise InputError("what pools over frames is another one than temporal_pool and num_frames say")
    if not model.has_its_preprocessing():
        raise InputError("mean or std of the classifier are not those of its preprocessing, which is what is saved")


def _dtype_of(model: VideoClassifier) -> str | None:
    """The dtype that all of ``model`` was cast to; None where it is as it was made, but for frozen weights in bf16."""
    head = model.head.weight.dtype
    if head != torch.float32:
        others = [plain_name(n) for n, p in model.named_parameters() if p.is_floating_point() and p.dtype != head]
        if others:
            raise InputError(
                f"the head is in {head} and {some(others)} not, which no folder could give back; "
                "cast all of the model, or nothing"
            )
        return str(head).removeprefix("torch.")
    made = get_origin(model.vit).tensors
    for name, t in model.vit.state_dict().items():
        before = made.get(plain_name(name), (t.dtype, 0))[0]
        if t.dtype not in (before, torch.bfloat16):
            raise InputError(
                f"vit.{plain_name(name)} is in {t.dtype} and was in {before}, which no folder could give back; cast "
                "all of the model, or nothing"
            )
    return None


def _check_description(description: dict[str, Any]) -> None:
    """Raise `InputError` where `AdapterFolder` would refuse it."""
    from fe_adapter.sharing.schema import AdapterFolder  # not before it is needed: the kernels' checks go without

    try:
        content = json.loads(json.dumps(description))
    except TypeError as error:
        raise InputError(f"the model cannot be described in {CONFIG_FILE}: {first_line(error)}") from None
    check_as(AdapterFolder, content, Path(CONFIG_FILE), "of this model would be refused when it is loaded")


def _warn_of_hooks(model: nn.Module, vit: nn.Module) -> None:
    hooked, origin = hooked_modules(model), get_origin(vit)
    if isinstance(model, VideoClassifier) and type(model).forward is not VideoClassifier.forward:
        hooked = [type(model).__name__, *hooked]
    if hooked and not origin.has_said:
        origin.has_said = True
        _log.warning("%s: hooks and forwards of your own are not saved; put them on what is loaded again", some(hooked))


def _active(vit: nn.Module) -> str:
    return get_adaptation(vit).active if hasattr(unwrapped(vit), "fe_adaptation") else DEFAULT
