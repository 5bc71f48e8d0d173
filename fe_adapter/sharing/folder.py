"""Adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors``, the backbone's weights left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import Preprocessing, plain_name, unwrapped
from fe_adapter.config import FEAdapterConfig
from fe_adapter.distributed import full_tensor, is_first_process
from fe_adapter.errors import InputError, some
from fe_adapter.files import atomic_write, not_finite, read_tensors
from fe_adapter.memory import frozen_weights
from fe_adapter.models.adaptation import adapt, get_adaptation, unadapt
from fe_adapter.models.blocks import DEFAULT, common_name
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.named import add_adapter, delete_adapter
from fe_adapter.models.origin import get_origin, is_of_adapter, other_settings, settings_of
from fe_adapter.models.task import VALUES, Task
from fe_adapter.sharing.content import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_finite,
    content_of,
    read_config,
    saved_tensors,
    saves_backbone,
    settings_with,
)
from fe_adapter.sharing.hub import local_folder

if TYPE_CHECKING:
    from fe_adapter.sharing.schema import AdapterFolder

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MODEL_FOLDERS = ("best", "last")  # of a training run, by preference


def save_adapter(model: nn.Module, folder: Path | str) -> None:
    """Write what training changed in ``model``: an adapted backbone, or a `VideoClassifier` with its head.

    The tensors' names are those in the model where nothing in it is compiled, ``vit.…`` for the backbone's side and
    ``head.…``. Of the backbone what trains, or is not what it was when the model was made, is written as well; the rest
    of it is left out, unless its weights are random ones (``weights="none"``), which nobody else has. Both files are
    written aside before either takes its place: if the disk is full, the previous ones are still there. In a
    distributed run every process calls it, since parameters may be sharded, and the first one writes.

    Raises:
        InputError: ``model`` has nothing to save, or something that `load_classifier` could not put back; or the folder
            cannot be written to.
    """
    folder, model = Path(folder), unwrapped(model)
    description, tensors = content_of(model)
    tensors = {name: full_tensor(t.detach()).cpu().contiguous() for name, t in tensors.items()}
    check_finite(tensors)
    if not is_first_process():
        return
    from safetensors.torch import save as to_bytes  # not before it is needed: the kernels' checks go without

    with atomic_write(folder / CONFIG_FILE) as config_file:
        config_file.write(json.dumps(description, indent=2).encode() + b"\n")
        config_file.flush()  # a full disk shows here, before the weights are replaced
        with atomic_write(folder / WEIGHTS_FILE) as weights_file:
            weights_file.write(to_bytes(tensors, {"format": "pt"}))


def load_adapter(vit: nn.Module, folder: Path | str, strict: bool = True, name: str | None = None) -> nn.Module:
    """Put the adapters of ``folder`` into ``vit``, in place; it is adapted first if it is not yet.

    An adapter of that name which is there already, and has the same config, is given other values: they are copied into
    the tensors that it has, so that graphs which were compiled or captured stay good. One of a new name comes beside
    the others, and is not active until `set_adapter` says so.

    Args:
        vit: the backbone the adapters were trained on; or a `VideoClassifier` around it, which takes head, class names
            and temperature from the folder, too.
        folder: written by `save_adapter`; or ``hub:OWNER/NAME`` (`fe_adapter.sharing.hub`).
        strict: refuse another backbone, and missing or extra tensors; otherwise load what fits.
        name: of the adapter in the model; None is the active one, or "default".

    Raises:
        InputError: the folder is damaged, newer than this release, or of another backbone; the name is none.
    """
    folder, given, model = local_folder(folder), vit, unwrapped(vit)
    classifier = model if isinstance(model, VideoClassifier) else None
    vit = unwrapped(model if classifier is None else classifier.vit)
    content = read_config(folder)
    config, num_frames = content.adapter, content.num_frames
    if config is None or num_frames is None:
        raise InputError(f"{folder} holds no adapters; use load_classifier")
    if classifier is not None:
        _check_classifier(classifier, content, folder)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    is_plain = not hasattr(vit, "fe_adaptation")
    name = name or (DEFAULT if is_plain else get_adaptation(vit).active)
    is_new = is_plain or name not in get_adaptation(vit).configs
    if is_plain:
        try:
            adapt(vit, config, num_frames=num_frames, name=name)
        except InputError as error:
            raise InputError(
                f"{error}; where adapt was told more of the model, call it first, then load_adapter"
            ) from None
    elif is_new:
        task = content.classifier if classifier is not None else None
        names, pool = (None, None) if task is None else (task.class_names, task.temporal_pool)
        add_adapter(model, name, config, class_names=names, temporal_pool=pool)
    try:
        _load_adapter(model, vit, content, config, tensors, folder, strict, name)
    except InputError:
        if is_plain:
            unadapt(vit)  # as it came
        elif is_new:
            delete_adapter(model, name)
        raise
    if classifier is not None:
        _tell(classifier.task(name), content)
    return given


def _load_adapter(
    model: nn.Module,
    vit: nn.Module,
    content: AdapterFolder,
    config: FEAdapterConfig,
    tensors: dict[str, Tensor],
    folder: Path,
    strict: bool,
    name: str,
) -> None:
    configs = get_adaptation(vit).configs
    if configs[name] != config:
        raise InputError(f"{folder} has other adapters than the model: {config}, not {configs[name]}")
    if len(configs) > 1 and (changed := [*content.also_trained, *content.also_changed]):
        raise InputError(
            f"{folder} also changed {some(changed)} of the backbone, which the model's other adapters share; "
            "load it into a backbone of its own"
        )
    if strict:
        _check_shape(vit, content, folder)
        _check_backbone(vit, content, folder, adapter=name)
    _let_train(vit, content, folder)
    of_backbone = {f"vit.{n}" for n in (*content.also_trained, *content.also_changed)}
    expected = saved_tensors(model, content.also_changed, name)  # of the backbone no more than the folder changed
    expected = {n: t for n, t in expected.items() if not n.startswith("vit.") or is_of_adapter(n) or n in of_backbone}
    own = tensors if model is not vit else {n: t for n, t in tensors.items() if not n.startswith(("head.", "pool."))}
    backbone = {
        f"vit.{plain_name(n)}": t for n, t in vit.state_dict().items() if f"vit.{plain_name(n)}" not in expected
    }
    others = [n for n, t in own.items() if n in backbone and not _is_same(t, backbone[n])]  # with ``weights="none"``
    if strict and others:
        raise InputError(f"{folder} holds other weights of the backbone ({some(others)}) than this one has")
    own = {n: t for n, t in own.items() if n not in backbone}
    _load(model, expected, own, folder, strict, name)


def _is_same(saved: Tensor, own: Tensor) -> bool:
    """Whether two of a backbone's tensors are one, by the fingerprint's measure."""
    return torch.equal(saved.to(torch.bfloat16), full_tensor(own.detach()).to("cpu", torch.bfloat16))


def _check_classifier(model: VideoClassifier, content: AdapterFolder, folder: Path) -> None:
    """Raise `InputError` unless what ``folder`` holds can come into ``model`` with its head."""
    if content.classifier is None:
        raise InputError(f"{folder} holds adapters without a classifier; load them into the backbone, model.vit")
    if model.tune != "adapter":
        raise InputError(f"the classifier was made with tune={model.tune!r} and takes no adapters")
    if Preprocessing(**content.classifier.preprocessing.model_dump()) != model.preprocessing:
        raise InputError(f"{folder} was trained on frames of another size, mean or std; load it by load_classifier")
    if content.frozen_weights != (own := frozen_weights.kinds_of(model.vit)):
        rounded = [" and ".join(kinds) or "nothing" for kinds in (content.frozen_weights, own)]
        raise InputError(f"{folder} was trained on a backbone rounded to {rounded[0]}, this one is to {rounded[1]}")


def _tell(task: Any, content: AdapterFolder) -> None:
    """Let a classifier, or what it has put by, say of itself what the folder does."""
    assert content.classifier is not None
    values = content.classifier.model_dump(exclude_unset=True)
    for name in set(VALUES) - {"temporal_pool"}:
        value = values.get(name, getattr(content.classifier, name))
        setattr(task, name, tuple(value) if name == "class_names" else value)


def load_classifier(
    folder: Path | str, vit: nn.Module | None = None, weights: str | Path | None = None
) -> VideoClassifier:
    """The `VideoClassifier` saved in ``folder``, in evaluation mode.

    Args:
        folder: written by `save_adapter` from a `VideoClassifier`; or ``hub:OWNER/NAME`` (`fe_adapter.sharing.hub`).
        vit: the plain backbone; None builds it by the name in the folder.
        weights: the backbone's weights, FILE, FOLDER, "pretrained" or "none"; None is where they came from in training.

    Raises:
        InputError: the folder is damaged, newer than this release, of another backbone, or has no backbone's name.
    """
    folder = local_folder(folder)
    content = read_config(folder)
    if content.classifier is None:
        raise InputError(f"{folder} holds adapters without a classifier; use load_adapter")
    options = content.classifier.model_dump(exclude_unset=True)
    options["preprocessing"] = Preprocessing(**options["preprocessing"])
    remembered = {name: options.pop(name, None) for name in ("clip_seconds", "clip_sampling", "faces", "note")}
    remembered["temperature"] = options.pop("temperature", 1.0)
    if options["tune"] == "adapter":
        options["config"] = content.adapter
    backbone = content.backbone
    is_whole = options["tune"] == "full" or (backbone is not None and backbone.weights == "none")
    if is_whole and weights not in (None, "none"):
        raise InputError(f"{folder} holds the weights of the backbone itself; leave weights out")
    if vit is not None:
        model = VideoClassifier(vit, **options)
        if backbone is not None and backbone.weights == "none":
            model.backbone_weights = "none"  # they are in the folder
    else:
        if backbone is None:
            raise InputError(f"{folder} does not say which backbone it was trained on; pass it as vit")
        if is_whole:
            weights = "none"
        elif weights is None:
            weights = backbone.weights
            if weights != "pretrained" and not Path(weights).exists():
                raise InputError(f"the backbone's weights were at {weights} and are not any more; pass weights")
        model = VideoClassifier.from_name(backbone.name, weights=weights, backbone_args=backbone.args, **options)
    for name, value in remembered.items():
        setattr(model, name, value)
    if model.tune == "adapter":
        _check_shape(model.vit, content, folder)
    _check_backbone(model.vit, content, folder, saves_backbone(model))
    for kind in content.frozen_weights:
        frozen_weights.check(model.vit, kind)
        frozen_weights.convert(model.vit, kind)
    if content.dtype is not None:
        model.to(getattr(torch, content.dtype))
    _let_train(model.vit, content, folder)
    tensors, name = read_tensors(folder / WEIGHTS_FILE), model.adapter or DEFAULT
    _load(model, saved_tensors(model, content.also_changed), tensors, folder, True, name)
    return model.eval()


def find_model(run: Path | str) -> Path:
    """The adapter folder meant by ``run``: itself, or ``best`` or else ``last`` of a training run.

    Raises:
        InputError: there is none.
    """
    run = local_folder(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such folder")
    for folder in (run, *(run / name for name in MODEL_FOLDERS)):
        if (folder / CONFIG_FILE).exists():
            return folder
    raise InputError(f"{run} holds no trained model: neither {CONFIG_FILE} nor best/ nor last/ is in it")


def _let_train(vit: nn.Module, content: AdapterFolder, folder: Path) -> None:
    """Let train what trained, once all is known to be there that is of the backbone itself."""
    parameters = {plain_name(name): p for name, p in vit.named_parameters()}
    tensors = {plain_name(name) for name in vit.state_dict()}
    for name in [n for n in content.also_trained if n not in parameters] or set(content.also_changed) - tensors:
        raise InputError(f"{folder} trained {name} of the backbone, which this one does not have")
    for name in content.also_trained:
        parameters[name].requires_grad_(True)


def _check_shape(vit: nn.Module, content: AdapterFolder, folder: Path) -> None:
    adaptation = get_adaptation(vit)
    if content.embed_dim != adaptation.embed_dim:
        raise InputError(
            f"{folder} was trained on another backbone: width {content.embed_dim}, this one has {adaptation.embed_dim}"
        )
    if content.num_prefix_tokens not in (None, adaptation.num_prefix_tokens):
        raise InputError(
            f"{folder} was trained on another backbone: {content.num_prefix_tokens} class and register tokens, "
            f"this one has {adaptation.num_prefix_tokens}"
        )


def _check_backbone(
    vit: nn.Module, content: AdapterFolder, folder: Path, saves_backbone: bool = False, adapter: str | None = None
) -> None:
    if other := other_settings(content.backbone_settings, settings_with(vit, settings_of(vit), adapter)):
        raise InputError(
            f"{folder} was trained on another backbone: this one has {some(other)}; build it as it was in training"
        )
    expected, fingerprint = None if saves_backbone else content.backbone_fingerprint, get_origin(vit).fingerprint
    if expected is not None and fingerprint is not None and expected != fingerprint:
        raise InputError(
            f"{folder} was trained on another backbone, or on other weights of it (fingerprint {expected[:8]}…, "
            f"this one has {fingerprint[:8]}…); load the weights it was trained on"
        )


def _load(
    model: nn.Module,
    expected: dict[str, Tensor],
    tensors: dict[str, Tensor],
    folder: Path,
    strict: bool,
    adapter: str,
) -> None:
    """Copy ``tensors`` into those that are ``expected``, the model's by the file's names."""
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    file = folder / WEIGHTS_FILE
    if strict and missing:
        raise InputError(f"{file} lacks {len(missing)} of {len(expected)} tensors: {some(missing)}")
    if strict and extra:
        raise InputError(f"{file} has {len(extra)} tensors the model has no place for: {some(extra)}")
    wrong = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    if wrong:
        found, wanted = tuple(tensors[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise InputError(f"{file}: {wrong[0]} has shape {found}, the model needs {wanted}")
    others = [name for name in expected if name in tensors and tensors[name].dtype not in FLOATS]
    if others:
        raise InputError(
            f"{file}: {others[0]} is {tensors[others[0]].dtype}; it must be floating point of 16 bits or more"
        )
    # as what they are loaded into: 1e300 is finite in fp64 only
    if infinite := not_finite({name: tensors[name].to(t.dtype) for name, t in expected.items() if name in tensors}):
        raise InputError(f"{file}: {infinite[0]} holds NaN or infinite values; the training it is of went wrong")
    names = _own_names(model, adapter)
    model.load_state_dict({names[name]: tensors[name] for name in expected if name in tensors}, strict=False)


def _own_names(model: nn.Module, adapter: str) -> dict[str, str]:
    """By the names that a file with ``adapter`` has for them, those of the model's tensors."""
    classifier = model if isinstance(model, VideoClassifier) else None
    prefix, own_part = "vit." if classifier is None else "", ""
    if classifier is not None and adapter != classifier.adapter and classifier.tune == "adapter":
        own_part = f"put_by.{Task.key(adapter)}."
    names = {}
    for own in model.state_dict():
        name = common_name(prefix + plain_name(own), adapter)
        if name is not None and name.startswith("vit."):
            names[name] = own
        elif name is not None and name.startswith(own_part):
            names[name.removeprefix(own_part)] = own
    return names
