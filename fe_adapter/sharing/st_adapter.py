"""Load checkpoints of ST-Adapter (arXiv 2206.13559) into adapted backbones."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import get_blocks
from fe_adapter.backbones.weights import read_state_dict
from fe_adapter.config import FEAdapterConfig
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import adapt, get_adaptation, unadapt
from fe_adapter.models.blocks import CHILDREN

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
