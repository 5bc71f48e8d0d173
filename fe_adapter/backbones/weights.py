"""Weights of a backbone from a file: tensors and containers, nothing else is unpickled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import plain_name
from fe_adapter.errors import InputError, first_line, some
from fe_adapter.files import not_finite

_log = logging.getLogger("fe_adapter")
Resample = Callable[[nn.Module, str, Tensor], Tensor | None]
USUAL = ("state_dict", "model", "teacher")  # by preference, where a file holds several models; teachers are DINO's
# children of the libraries' models that come after the features we take, or beside them
HEADS = frozenset({
    "head", "heads", "head_dist", "fc", "classifier", "cls_classifier", "distillation_classifier", "pooler",
    "text_model", "text_projection", "visual_projection", "logit_scale", "logit_bias",
})  # fmt: skip


def load_weights(model: nn.Module, path: Path, resample: Resample) -> None:
    """Load a weights file; what is left out of it, and what is changed, is logged.

    Names may begin with what a wrapper or a larger model put there (``module.``, ``model.vit.``). A head is left out
    where the model has none or one of another size. Position embeddings of another image size are resampled.

    Args:
        model: a backbone.
        path: as of `read_state_dict`.
        resample: ``(model, name, value)`` gives the value for the model's image size, by the library's own rule, or
            None where it has none.

    Raises:
        InputError: the file cannot be read, or is of another model.
    """
    own, content = model.state_dict(), read_state_dict(path)
    content = {plain_name(name): value for name, value in content.items()}
    odd = [name for name, t in content.items() if not _is_dense(t)]
    if wrong := odd or not_finite(content):
        raise InputError(f"weights {path}: {wrong[0]} is no dense tensor of finite real numbers")
    prefix = _prefix(content, own)
    outside = [name for name in content if not name.startswith(prefix)]
    state = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    missing = [name for name in own if name not in state and not _is_of_head(name)]
    extra = [name for name in state if name not in own and not _is_of_head(name)]
    if missing or extra:
        parts = [f"{kind} {some(names)}" for kind, names in (("lacks", missing), ("has besides", extra)) if names]
        raise InputError(f"weights {path} are of another model: the file {' and '.join(parts)}")
    if wide := not_finite({name: t.to(own[name].dtype) for name, t in state.items() if name in own}):
        raise InputError(f"weights {path}: {wide[0]} holds values beyond {own[wide[0]].dtype}")
    integers = [
        name for name, value in own.items()
        if name in state and value.is_floating_point() and not state[name].is_floating_point()
    ]  # fmt: skip
    if integers:
        raise InputError(f"weights {path}: {integers[0]} is {state[integers[0]].dtype}, without what it was scaled by")
    said = []
    for name in [name for name, value in own.items() if name in state and state[name].shape != value.shape]:
        value = None if _is_of_head(name) else resample(model, name, state[name])
        if value is not None and value.shape == own[name].shape:
            said.append(f"{name} is resampled from {tuple(state[name].shape)} to {tuple(value.shape)}")
            state[name] = value
        elif not _is_of_head(name):
            found, wanted = tuple(state[name].shape), tuple(own[name].shape)
            raise InputError(f"weights {path} are of another model: {name} is {found}, not {wanted}")
        else:
            outside.append(prefix + name)
            del state[name]
    outside += [prefix + name for name in state if name not in own]
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    if outside:
        said.append(f"{some(sorted(outside))} {'is' if len(outside) == 1 else 'are'} left out")
    if said:
        _log.warning("weights %s: %s", path, "; ".join(said))


def _prefix(content: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What the names in a file have before those of the model; of two models in it, as in `read_state_dict`."""
    longest = max(own, key=len)
    found = [name.removesuffix(longest) for name in content if name == longest or name.endswith(f".{longest}")]
    usual = [prefix for key in USUAL for prefix in found if key in prefix.split(".")]
    found = [prefix for prefix in dict.fromkeys(usual + sorted(found, key=len)) if "student" not in prefix] or found
    return max(found, key=lambda prefix: sum(prefix + name in content for name in own), default="")


def _is_dense(t: Tensor) -> bool:
    return t.layout == torch.strided and not (t.is_complex() or t.is_quantized or t.is_nested or t.is_meta)


def _is_of_head(name: str) -> bool:
    return name.partition(".")[0] in HEADS


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a ``torch.save`` file that holds nothing but tensors and containers.

    Raises:
        InputError: the file is damaged, or would have to be unpickled to be read.
    """
    from safetensors import SafetensorError  # not before it is needed: the kernels' checks go without
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:  # whose name may end in anything
            head = file.read(9)
            if head[8:] == b"{":  # after the header's length
                return load_file(path)
            if not head.startswith((b"PK", b"\x80")):  # of a zip archive, or a pickle of old
                raise InputError(f"weights {path} cannot be read: it is neither a safetensors nor a torch.save file")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"weights {path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # pickle's own errors are of many kinds
        raise InputError(f"weights {path} hold more than tensors and are not read: {type(error).__name__}") from None
    found = dict(_state_dicts(content))
    if not found:
        raise InputError(f"weights {path} are no dictionary of tensors")
    usual = [name for key in USUAL for name in found if name.rpartition(".")[2] == key]
    if len(found) > 1 and not usual:
        raise InputError(f"weights {path} hold several models, {some(found)}; save the one that is meant alone")
    chosen = next(iter(usual or found))
    if len(found) > 1:
        _log.warning("weights %s hold %s, of which %s is taken", path, ", ".join(found), chosen)
    return found[chosen]


def _state_dicts(content: Any, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries of named tensors in what a file holds, by the keys that lead to them."""
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        return
    if all(isinstance(value, Tensor) for value in content.values()):
        yield name, content
        return
    for key, value in content.items() if name.count(".") < 3 else ():
        yield from _state_dicts(value, f"{name}.{key}".lstrip("."))
