"""Weights of a backbone from a file: tensors and containers, nothing else is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fe_adapter.errors import InputError


def load_weights(model: nn.Module, path: Path, may_differ: set[str]) -> None:
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
        raise InputError(f"weights {path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # pickle's own errors are of many kinds
        raise InputError(f"weights {path} hold more than tensors and are not read: {type(error).__name__}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"weights {path} are no dictionary of tensors")
    return content


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) < 300 else f"{lines[0][:300]} …"
