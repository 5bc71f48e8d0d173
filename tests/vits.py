"""Backbones with random weights, two blocks deep and as small as their libraries let them be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

NAMES: dict[str, Callable[[], nn.Module]] = {}


def timm(name: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("timm", reason="timm is not installed")
        return library.create_model(name, depth=2, num_classes=0, embed_dim=48, num_heads=2, **options)

    return build


def transformers(kind: str, cls: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers", reason="transformers is not installed")
        config = library.AutoConfig.for_model(
            kind, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=8, **options,
        )  # fmt: skip
        return getattr(library, cls)(config)

    return build


def open_clip(**options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("open_clip.transformer", reason="open_clip is not installed")
        return library.VisionTransformer(
            image_size=32, patch_size=8, width=48, layers=2, heads=2, mlp_ratio=2, output_dim=16, **options
        )

    return build


def open_clip_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        pytest.importorskip("open_clip", reason="open_clip is not installed")
        from open_clip.model import CLIP

        tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 24}
        if name != "CLIP":
            tower = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
            tower |= {"image_size": 32}
        text = {"context_length": 4, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
        return CLIP(embed_dim=16, vision_cfg=tower, text_cfg=text)

    return build


def torchvision() -> nn.Module:
    library = pytest.importorskip("torchvision.models.vision_transformer", reason="torchvision is not installed")
    return library.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=64)


SMALL = {"img_size": 32, "patch_size": 8}
BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {  # name: (builder, prefix tokens)
    "timm vit": (timm("vit_base_patch16_224", **SMALL), 1),
    "timm vit 24x40": (timm("vit_base_patch16_224", img_size=(24, 40), patch_size=8), 1),
    "timm vit any size": (timm("vit_base_patch16_224", dynamic_img_size=True, **SMALL), 1),
    "timm clip": (timm("vit_base_patch16_clip_quickgelu_224", **SMALL), 1),
    "timm deit3": (timm("deit3_base_patch16_224", **SMALL), 1),
    "timm deit distilled": (timm("deit_base_distilled_patch16_224", **SMALL), 2),
    "timm eva": (timm("eva_large_patch14_196", **SMALL), 1),
    "timm dinov2": (timm("vit_base_patch14_dinov2", **SMALL), 1),
    "timm dinov2 registers": (timm("vit_base_patch14_reg4_dinov2", **SMALL), 5),
    "timm siglip": (timm("vit_base_patch16_siglip_224", **SMALL), 0),
    "timm siglip gap": (timm("vit_base_patch16_siglip_gap_224", **SMALL), 0),
    "timm dinov3": (timm("vit_base_patch16_dinov3", **SMALL), 5),
    "timm eva02 clip": (timm("eva02_base_patch16_clip_224", **SMALL), 1),
    "timm eva02": (timm("eva02_base_patch14_448", **SMALL), 1),
    "timm perception encoder": (timm("vit_pe_core_base_patch16_224", **SMALL), 1),
    "timm rope mixed": (timm("vit_base_patch16_rope_mixed_224", **SMALL), 1),
    "timm registers, no class token": (timm("vit_base_patch16_reg4_gap_256", **SMALL), 4),
    "timm rope registers": (timm("vit_base_patch16_rope_reg1_gap_256", **SMALL), 1),
    "timm beitv2": (timm("beitv2_base_patch16_224", **SMALL), 1),
    "timm parallel": (timm("vit_base_patch16_xp_224", **SMALL), 1),
    "hf vit": (transformers("vit", "ViTModel"), 1),
    "hf vit for classification": (transformers("vit", "ViTForImageClassification"), 1),
    "hf deit": (transformers("deit", "DeiTModel"), 2),
    "hf beit": (transformers("beit", "BeitModel", use_relative_position_bias=True), 1),
    "hf clip vision": (transformers("clip_vision_model", "CLIPVisionModel"), 1),
    "hf siglip vision": (transformers("siglip_vision_model", "SiglipVisionModel"), 0),
    "hf dinov2": (transformers("dinov2", "Dinov2Model"), 1),
    "hf dinov2 registers": (transformers("dinov2_with_registers", "Dinov2WithRegistersModel"), 5),
    "hf dinov3": (transformers("dinov3_vit", "DINOv3ViTModel", num_register_tokens=3), 4),
    "open_clip": (open_clip(), 1),
    "open_clip ln after pool": (open_clip(pool_type="avg", final_ln_after_pool=True), 1),
    "open_clip model": (open_clip_model("CLIP"), 1),
    "torchvision": (torchvision, 1),
}


def build(name: str) -> nn.Module:
    """The backbone with every parameter random: some libraries start with zeros that would hide a mistake."""
    torch.manual_seed(0)
    model = BACKBONES[name][0]().eval()
    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model


def size(name: str) -> tuple[int, int]:
    return (24, 40) if "24x40" in name else (32, 32)


def tokens(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """One output tensor of any of the libraries' models."""
    if hasattr(model, "encode_image"):
        return model.encode_image(images)
    out = model(images)
    for key in ("last_hidden_state", "logits"):
        out = getattr(out, key, out)
    return out
