"""Build a backbone by name: ``timm:NAME``, ``hf:NAME``, ``openclip:NAME/TAG``, ``torchvision:NAME``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import nn

from fe_adapter.backbones.describe import LIBRARIES
from fe_adapter.backbones.hub import hub_or_cache
from fe_adapter.checks import MAX_BLOCKS, MAX_WIDTH
from fe_adapter.errors import InputError, first_line

MAX_SIDE = 2**14  # of an image, in pixels
# in the names of models whose config is on Hugging Face's hub, too
HUB_NAMES = {"timm": ("hf_hub:", "hf-hub:"), "hf": ("/",), "openclip": ("hf-hub:",), "torchvision": ()}
LARGEST = {  # of the arguments that libraries build a backbone of, by the ending of their names
    **dict.fromkeys(("img_size", "image_size", "patch_size"), MAX_SIDE),
    **dict.fromkeys(("dim", "hidden_size", "intermediate_size"), MAX_WIDTH),
    **dict.fromkeys(("depth", "layers", "heads"), MAX_BLOCKS),
}


def check_args(args: dict[str, Any]) -> None:
    """Raise `InputError` for sizes that no backbone has; what else is given is its library's to check."""
    for name, value in args.items():
        largest = next((bound for ending, bound in LARGEST.items() if name.endswith(ending)), None)
        numbers = [n for n in (value if isinstance(value, (list, tuple)) else [value]) if type(n) in (int, float)]
        if largest is not None and not all(1 <= n <= largest for n in numbers):  # dynamic_img_size is a bool
            raise InputError(f"{name}={value!r} is not from 1 to {largest}")


def build_backbone(name: str, weights: str | Path | None, args: dict[str, Any]) -> nn.Module:
    """The image transformer of that name.

    Args:
        name: library and model.
        weights: "pretrained", a local FILE or FOLDER, or None or "none" for random ones.
        args: further arguments of the library's constructor, or of its config for ``hf:``.

    Raises:
        InputError: an unknown name, weights that do not fit or cannot be had, or a missing library.
    """
    prefix, _, model = name.partition(":")
    library = next((library for library in LIBRARIES if prefix == library.NAME), None)
    if library is None or not model:
        raise InputError(f"backbone {name!r} is none of timm:NAME, hf:NAME, openclip:NAME/TAG, torchvision:NAME")
    try:
        check_args(args)
    except InputError as error:
        raise InputError(f"cannot build {name}: {error}") from None
    path = None
    if weights is None or str(weights) == "none":
        weights = None
    elif str(weights) != "pretrained":
        path = Path(weights)
        if not path.exists():
            raise InputError(f"weights {path}: no such file or folder")
    is_pretrained = weights is not None and path is None
    needs_hub = is_pretrained or any(mark in model for mark in HUB_NAMES[prefix])
    try:
        with hub_or_cache() if needs_hub else contextlib.nullcontext():
            return library.build(model, is_pretrained, path, args)
    except ImportError as error:
        raise InputError(f"{name} needs {error.name}; pip install 'fe-adapter[{library.EXTRA}]'") from None
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of arguments that it does not check
        hint = "; without a network, give a local file with weights (--weights FILE)" if is_pretrained else ""
        raise InputError(f"cannot build {name}: {first_line(error)}{hint}") from error
