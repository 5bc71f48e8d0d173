"""Image transformers of timm, transformers, open_clip and torchvision."""
