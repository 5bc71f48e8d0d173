"""Checkpoints of ST-Adapter (arXiv 2206.13559): loaded into backbones, and written for its own scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks, unwrapped
from fe_adapter.backbones.weights import read_state_dict
from fe_adapter.config import FEAdapterConfig
from fe_adapter.distributed import full_tensor
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write
from fe_adapter.layers import FEAdapter
from fe_adapter.models.adaptation import adapt, get_adaptation, unadapt
from fe_adapter.models.blocks import CHILDREN, child_name
from fe_adapter.models.classifier import VideoClassifier

_KEY = re.compile(r"transformer\.resblocks\.(\d+)\.adapter_pre_(attn|mlp)\.(fc1|conv|fc2)\.(weight|bias)$")
_STAGES = {"fc1": "down_proj", "conv": "temporal_conv", "fc2": "up_proj"}


def load_st_adapter(vit: nn.Module, path: Path | str, *, num_frames: int) -> dict[str, Tensor]:
    """Adapt ``vit`` as an ST-Adapter checkpoint says and load the checkpoint's adapters, in place.

    The published checkpoints want OpenAI's CLIP ViT-B/16 with QuickGELU, such as timm's
    ``vit_base_patch16_clip_quickgelu_224``. Nothing is unpickled but tensors and containers.

    Args:
        vit: the backbone, not adapted.
        path: ``checkpoint-N.pth`` of the published training script.
        num_frames: frames T of a clip.

    Returns:
        The classifier's ``weight`` (C, D) and ``bias`` (C,) where the checkpoint has one, else an empty dictionary.

    Raises:
        InputError: the file is no ST-Adapter checkpoint, or its adapters do not fit ``vit``.
    """
    path = Path(path)
    state = read_state_dict(path)
    tensors: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _KEY.match(key)
        if match:
            block, position, stage, kind = match.groups()
            name = f"{_STAGES[stage]}.{kind}"
            tensors.setdefault((int(block), position), {})[name] = value.to(torch.float32)
    if not tensors or any(len(adapter) != 6 for adapter in tensors.values()):
        raise InputError(f"{path} holds no whole ST-Adapter (resblocks.0.adapter_pre_attn.fc1.weight, …)")
    adapt(vit, _config(tensors, path), num_frames=num_frames)
    try:
        blocks = get_blocks(vit, get_adaptation(vit).blocks_path)
        for (block, position), adapter in tensors.items():
            blocks[block].get_submodule(CHILDREN[position]).load_state_dict(adapter)
    except RuntimeError as error:
        unadapt(vit)
        raise InputError(f"{path} does not fit this backbone: {str(error).strip().splitlines()[-1].strip()}") from None
    return {kind: state[f"fc.{kind}"].float() for kind in ("weight", "bias") if f"fc.{kind}" in state}


def save_st_adapter(model: nn.Module, path: Path | str) -> None:
    """Write the adapters of ``model``, and its head, as the published training script of ST-Adapter names them.

    There the mean over time comes before the last norm, here after it: with the head, logits differ a little.

    Args:
        model: an adapted backbone, or a `VideoClassifier`; of several adapters the active one is written.
        path: ``….pth``, as that script writes and reads it, by pickle; or ``….safetensors``, the same names.

    Raises:
        InputError: the adapters compute what ST-Adapter's do not, or the file cannot be written.
    """
    path, model = Path(path), unwrapped(model)
    if path.suffix not in (".pth", ".safetensors"):
        raise InputError(f"{path} is neither .pth nor .safetensors")
    classifier = model if isinstance(model, VideoClassifier) else None
    vit = model if classifier is None else classifier.vit
    adaptation = get_adaptation(vit)
    state = {}
    for number, block in enumerate(get_blocks(vit, adaptation.blocks_path)):
        for position in CHILDREN:
            adapter: Any = getattr(block, child_name(position, adaptation.active), None)
            if adapter is not None:
                _check_is_st_adapter(adapter)
                prefix = f"transformer.resblocks.{number}.adapter_pre_{position}"
                for theirs, ours in _STAGES.items():
                    for kind in ("weight", "bias"):
                        state[f"{prefix}.{theirs}.{kind}"] = adapter.get_parameter(f"{ours}.{kind}")
    if classifier is not None:
        if classifier.temporal_pool != "mean":
            raise InputError(f"ST-Adapter averages over frames; this model has {classifier.temporal_pool!r}")
        state |= {f"fc.{kind}": classifier.head.get_parameter(kind) for kind in ("weight", "bias")}
    state = {name: full_tensor(t.detach()).float().cpu().contiguous() for name, t in state.items()}
    from safetensors.torch import save as to_bytes  # not before it is needed: the kernels' checks go without

    with atomic_write(path) as file:
        if path.suffix == ".pth":
            torch.save({"model": state}, file)
        else:
            file.write(to_bytes(state))


def _check_is_st_adapter(adapter: FEAdapter) -> None:
    others = {"dilation": (1, (1, 1, 1)), "causal": (False,), "activation": ("identity",), "num_prefix_tokens": (1,)}
    for name, allowed in others.items():
        if getattr(adapter, name) not in allowed:
            raise InputError(
                f"ST-Adapter has {name}={allowed[0]!r}; this model's adapters have {getattr(adapter, name)!r}"
            )


def _config(tensors: dict[tuple[int, str], dict[str, Tensor]], path: Path) -> FEAdapterConfig:
    weights = [adapter["temporal_conv.weight"] for adapter in tensors.values()]
    if len({tuple(weight.shape) for weight in weights}) > 1:
        raise InputError(f"{path} has adapters of different sizes; this is no published ST-Adapter")
    bottleneck, _, *kernel_size = weights[0].shape
    positions = tuple(position for position in CHILDREN if any(key[1] == position for key in tensors))
    blocks = sorted({block for block, _ in tensors})
    if len(tensors) != len(positions) * len(blocks):
        raise InputError(f"{path} has adapters at different places in its blocks; this is no published ST-Adapter")
    return FEAdapterConfig(
        bottleneck=bottleneck,
        kernel_size=(kernel_size[0], kernel_size[1], kernel_size[2]),
        dilation=1,
        positions=positions,
        blocks=tuple(blocks),
    )
