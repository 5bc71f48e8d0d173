"""Build a backbone by name: ``timm:NAME``, ``hf:NAME``, ``openclip:NAME/TAG``, ``torchvision:NAME``."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.errors import InputError

LIBRARIES = ("timm", "hf", "openclip", "torchvision")


def build_backbone(name: str, weights: str | Path | None, args: dict[str, Any]) -> nn.Module:
    """The image transformer of that name.

    Args:
        name: library and model.
        weights: "pretrained", a local FILE or FOLDER, or None or "none" for random ones.
        args: further arguments of the library's constructor, or of its config for ``hf:``.

    Raises:
        InputError: an unknown name, weights that do not fit or cannot be had, or a missing library.
    """
    library, _, model = name.partition(":")
    if library not in LIBRARIES or not model:
        raise InputError(f"backbone {name!r} is none of timm:NAME, hf:NAME, openclip:NAME/TAG, torchvision:NAME")
    path = None
    if weights is None or str(weights) == "none":
        weights = None
    elif str(weights) != "pretrained":
        path = Path(weights)
        if not path.exists():
            raise InputError(f"weights {path}: no such file or folder")
    build = {"timm": _timm, "hf": _transformers, "openclip": _open_clip, "torchvision": _torchvision}[library]
    try:
        return build(model, weights is not None and path is None, path, args)
    except ImportError as error:
        raise InputError(f"{name} needs {error.name}; pip install 'fe-adapter[{_extra(library)}]'") from None
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        raise InputError(f"cannot build {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) < 300 else f"{lines[0][:300]} …"


def _extra(library: str) -> str:
    return {"torchvision": "timm"}.get(library, library)


def _timm(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise InputError(f"timm has no model {name!r}; close to it are {', '.join(close)}")
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, **args)
    if path is not None:
        _load(model, path, {"head.weight", "head.bias"})
    return model


def _torchvision(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}")
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **args)
    if path is not None:
        _load(model, path, set())
    return model


def _open_clip(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise InputError(f"open_clip has no model {architecture!r}; see open_clip.list_models()")
    if pretrained and not tag:
        raise InputError(f"openclip:{name} names no pretrained weights; write openclip:{architecture}/TAG")
    source = str(path) if path is not None else tag if pretrained else None
    model = open_clip.create_model(architecture, pretrained=source, load_weights=source is not None, **args)
    return model.visual


def _transformers(name: str, pretrained: bool, path: Path | None, args: dict[str, Any]) -> nn.Module:
    """``hf:owner/model``, or ``hf:MODEL_TYPE`` such as ``hf:vit`` for a model from its default config."""
    import transformers

    source = str(path) if path is not None and path.is_dir() else name
    if pretrained or source != name:
        return _with_statistics(transformers.AutoModel.from_pretrained(source, **args), source)
    if "/" in name:
        config = transformers.AutoConfig.from_pretrained(name, **args)
    else:
        config = transformers.AutoConfig.for_model(name)
        unknown = sorted(key for key in args if not hasattr(config, key))
        if unknown:
            raise InputError(f"the config of hf:{name} has no {unknown[0]!r}")
        config = transformers.AutoConfig.for_model(name, **args)
    model = transformers.AutoModel.from_config(config)
    if path is not None:
        _load(model, path, set())
    return model


def _with_statistics(model: Any, source: str) -> nn.Module:
    """Keep a local folder's image mean and std in the model's config, where `describe_backbone` looks for them."""
    file = Path(source) / "preprocessor_config.json"
    if file.exists():
        content = json.loads(file.read_text())
        if "image_mean" in content and "image_std" in content:
            for config in (model.config, getattr(model.config, "vision_config", None)):
                if config is not None:
                    config.image_statistics = (tuple(content["image_mean"]), tuple(content["image_std"]))
    return model


def _load(model: nn.Module, path: Path, may_differ: set[str]) -> None:
    """Load a weights file; the keys in ``may_differ`` (a classifier's) may be there or not."""
    state = read_state_dict(path)
    missing = sorted(set(model.state_dict()) - set(state) - may_differ)
    extra = sorted(set(state) - set(model.state_dict()) - may_differ)
    if missing or extra:
        parts = [f"{kind} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" for kind, keys in
                 (("lacks", missing), ("has besides", extra)) if keys]  # fmt: skip
        raise InputError(f"weights {path} are of another model: the file {' and '.join(parts)}")
    for key, value in model.state_dict().items():
        if key in state and state[key].shape != value.shape:
            raise InputError(
                f"weights {path} are of another model: {key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict(state, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a ``torch.save`` file that holds nothing but tensors and containers.

    Raises:
        InputError: the file is damaged, or would have to be unpickled to be read.
    """
    from safetensors import SafetensorError  # not before it is needed: the kernels' checks go without
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"weights {path} cannot be read: {_first_line(error)}") from None
    except Exception as error:  # pickle's own errors are of many kinds
        raise InputError(f"weights {path} hold more than tensors and are not read: {type(error).__name__}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"weights {path} are no dictionary of tensors")
    return content
