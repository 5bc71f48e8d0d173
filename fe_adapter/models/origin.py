"""What a backbone was when it became part of a video model, by which it is known what has become of it since.

An adapter folder leaves the backbone to its source, so whatever differs from that has to be in the folder, or be
refused. Adapters are no part of the weights here, but of the settings: they are built anew, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import plain_name, unwrapped
from fe_adapter.distributed import full_tensor

# plain attributes of modules without a part in what a backbone and adapters compute, or told by the shapes of weights
INERT = frozenset({
    "training", "p", "drop_prob", "drop_rate", "dropout", "attention_dropout", "inplace", "fused_attn",
    "grad_checkpointing", "gradient_checkpointing", "name_or_path", "loss_type", "weight_init_mode", "fix_init",
    "num_classes", "num_features", "head_hidden_size", "in_features", "out_features", "in_channels", "out_channels",
    "normalized_shape", "elementwise_affine", "num_frames", "grid_size", "backend", "recompute",
})  # fmt: skip
# hooks of the libraries themselves look on, or do their part wherever the model is built again
LIBRARIES = ("fe_adapter", "torch", "accelerate", "transformers", "timm", "open_clip", "torchvision")


@dataclasses.dataclass
class Origin:
    """A backbone as it came; kept on it as ``fe_origin``.

    Args:
        fingerprint: as of `fingerprint`.
        settings: as of `settings_of`.
        tensors: dtype and checksum of all that its state dict held; empty where they had no values.
        changed: tensors of which it is known that they have changed, whatever their checksum is.
        has_said: whether hooks were warned of.
    """

    fingerprint: str | None
    settings: dict[str, Any]
    tensors: dict[str, tuple[torch.dtype, int]]
    changed: frozenset[str] = frozenset()
    has_said: bool = False


def remember(vit: nn.Module) -> None:
    """Keep what ``vit`` is now as its origin."""
    inner: Any = unwrapped(vit)
    inner.fe_origin = Origin(fingerprint(vit), settings_of(vit), _checksums(vit))


def get_origin(vit: nn.Module) -> Origin:
    """The origin of a backbone in a video model."""
    return unwrapped(vit).fe_origin  # type: ignore[return-value]


def changed_tensors(vit: nn.Module) -> dict[str, Tensor]:
    """The frozen tensors of ``vit`` that are not those of its origin, by their names where nothing is compiled.

    A backbone that its user has cast to bf16 has not changed, if that is all.
    """
    origin = get_origin(vit)
    if not _has_values(vit):
        return {}
    state = {name: t for name, t in _state(vit).items() if name in origin.tensors}
    cast = {name for name, t in state.items() if t.dtype != origin.tensors[name][0]}
    if cast and fingerprint(vit) == origin.fingerprint:
        state = {name: t for name, t in state.items() if name not in cast or name in origin.changed}
    trained = {plain_name(name) for name, p in unwrapped(vit).named_parameters() if p.requires_grad}
    return {
        name: t
        for name, t in state.items()
        if name not in trained and (name in origin.changed or origin.tensors[name] != (t.dtype, _checksum(t)))
    }


@contextlib.contextmanager
def rounding(vit: nn.Module) -> Iterator[None]:
    """Within the context frozen weights are rounded, which is no change; what has changed before stays known."""
    if not hasattr(unwrapped(vit), "fe_origin"):
        yield
        return
    origin, changed = get_origin(vit), frozenset(changed_tensors(vit))
    yield
    origin.tensors, origin.changed = _checksums(vit), origin.changed | changed


def identity_of(vit: nn.Module) -> str | None:
    """The fingerprint of the origin or, if frozen tensors have changed since, another one."""
    changed, origin = changed_tensors(vit), get_origin(vit).fingerprint
    if origin is None or not changed:
        return origin
    parts = [origin, *(f"{name} {_checksum(t.to(torch.bfloat16))}" for name, t in sorted(changed.items()))]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def fingerprint(vit: nn.Module) -> str | None:
    """A hash of names, shapes and bf16-rounded values of the backbone's parameters; None where there are no values.

    Freezing in bf16 does not change it.
    """
    if not _has_values(vit):
        return None
    digest = hashlib.blake2b(digest_size=16)
    parameters = {plain_name(name): p for name, p in unwrapped(vit).named_parameters()}
    for name, p in sorted(parameters.items()):
        if not is_of_adapter(name):
            digest.update(f"{name} {tuple(p.shape)}".encode())
            digest.update(_bytes(full_tensor(p.detach()).to("cpu", torch.bfloat16)))
    return digest.hexdigest()


def settings_of(vit: nn.Module) -> dict[str, Any]:
    """What the modules of ``vit`` are told beside weights, as JSON values: ``{"blocks.*.norm1.eps": 1e-06}``.

    Those at the same place in every block are one value or, where they differ, a list of all.
    """
    found: dict[str, list[Any]] = {}
    for name, module in unwrapped(vit).named_modules():
        path, kind = plain_name(f"{name}."), type(module).__name__
        if "Linear" in kind:  # told by its weights alone, packed or not
            continue
        place = ".".join("*" if part.isdecimal() else part for part in path.split(".")).lstrip(".")
        own = {key: value for key, value in vars(module).items() if _is_setting(key, value)}
        if next(module.children(), None) is None:
            own["class"] = "Identity" if "Drop" in kind else kind  # which it is where nothing trains
        for key, value in own.items():
            found.setdefault(place + key, []).append(list(value) if isinstance(value, tuple) else value)
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in found.items()}


def other_settings(wanted: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """In words, what is another one; what only one of two releases of a library knows is not compared."""
    return [f"{key} {own[key]} instead of {value}" for key, value in wanted.items() if own.get(key, value) != value]


def digest_of(settings: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def hooked_modules(model: nn.Module) -> list[str]:
    """The modules of ``model`` with hooks or a forward of their user's, of which no folder could know."""
    found = []
    for name, module in model.named_modules():
        hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        state: Any = vars(module).get("fe_state")  # of a block, whose own forward is put by there
        hooks += [f for f in (vars(module).get("forward"), getattr(state, "own_forward", None)) if f is not None]
        if any(_library(hook) not in LIBRARIES for hook in hooks):
            found.append(plain_name(name) or type(module).__name__)
    return found


def _library(function: Any) -> str:
    return str(getattr(function, "__module__", None)).partition(".")[0]


def _is_setting(key: str, value: Any) -> bool:
    if key in INERT or key.startswith("_"):
        return False
    if isinstance(value, tuple):
        return all(_is_setting("", item) for item in value)
    return type(value) in (bool, int, str, type(None)) or (type(value) is float and math.isfinite(value))


def is_of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return any(part.startswith("fe_adapter") for part in name.split("."))


def _state(vit: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters; sharded tensors as they are, each a part."""
    state = {plain_name(name): t for name, t in unwrapped(vit).state_dict().items()}
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and not is_of_adapter(name)}


def _checksums(vit: nn.Module) -> dict[str, tuple[torch.dtype, int]]:
    return {name: (t.dtype, _checksum(t)) for name, t in _state(vit).items()} if _has_values(vit) else {}


def _has_values(vit: nn.Module) -> bool:
    """Whether all is there: nothing on the meta device, nothing fake."""
    parameters = [p for name, p in unwrapped(vit).named_parameters() if not is_of_adapter(name)]
    is_known = (type(p) in (nn.Parameter, Tensor) or hasattr(p, "full_tensor") for p in parameters)
    return all(is_known) and not any(p.is_meta for p in parameters)


def _checksum(t: Tensor) -> int:
    """Of the whole tensor's bytes: what changes by accident, and nobody forges."""
    return zlib.crc32(_bytes(full_tensor(t.detach()).cpu()))


def _bytes(t: Tensor) -> Any:
    return t.contiguous().reshape(-1).view(torch.uint8).numpy()
