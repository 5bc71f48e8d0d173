"""Image transformers of timm, transformers, open_clip and torchvision: described, and built by name."""

from fe_adapter.backbones.backbone import Backbone, Preprocessing, get_blocks
from fe_adapter.backbones.build import build_backbone
from fe_adapter.backbones.describe import describe_backbone

__all__ = [
    "Backbone",
    "Preprocessing",
    "build_backbone",
    "describe_backbone",
    "get_blocks",
]
