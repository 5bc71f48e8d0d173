"""Build a backbone by name: ``timm:NAME``, ``hf:NAME``, ``openclip:NAME/TAG``, ``torchvision:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fe_adapter.backbones.describe import LIBRARIES
from fe_adapter.backbones.weights import first_line
from fe_adapter.errors import InputError
from fe_adapter.libraries import quiet


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
    path = None
    if weights is None or str(weights) == "none":
        weights = None
    elif str(weights) != "pretrained":
        path = Path(weights)
        if not path.exists():
            raise InputError(f"weights {path}: no such file or folder")
    try:
        with quiet("huggingface_hub"):  # which says for a minute that there is no network; once is enough
            return library.build(model, weights is not None and path is None, path, args)
    except ImportError as error:
        raise InputError(f"{name} needs {error.name}; pip install 'fe-adapter[{library.EXTRA}]'") from None
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of arguments that it does not check
        hint = "; without a network, give a local file with weights (--weights FILE)" if weights == "pretrained" else ""
        raise InputError(f"cannot build {name}: {first_line(error)}{hint}") from error
