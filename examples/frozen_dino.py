"""Train adapters in a frozen DINOv2 or DINOv3 on a folder with a folder of videos for each class.

    python examples/frozen_dino.py videos --out run
    python examples/frozen_dino.py videos --out run --backbone timm:vit_small_patch16_dinov3.lvd1689m

``fe-adapter train`` does the same with more options, and both leave the same folder behind.
"""

import argparse
import json

from fe_adapter import FEAdapterConfig, TrainConfig, VideoClassifier, fit, print_trainable_parameters
from fe_adapter.data import ClipRecipe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("videos")
parser.add_argument("--backbone", default="timm:vit_small_patch14_dinov2.lvd142m")
parser.add_argument("--backbone-args", type=json.loads, default={"img_size": 224}, help="as JSON")
parser.add_argument("--weights", default="pretrained", help="pretrained, a FILE, or none: random ones")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="run")

if __name__ == "__main__":  # workers that decode videos import this file again
    args = parser.parse_args()
    clips = ClipRecipe(num_frames=8)
    train_set, val_set = clips.open(args.videos, "train", is_training=True), clips.open(args.videos, "val")
    model = VideoClassifier.from_name(
        args.backbone, weights=args.weights, backbone_args=args.backbone_args, class_names=train_set.class_names,
        config=FEAdapterConfig(bottleneck=64), num_frames=clips.num_frames,
    )  # fmt: skip
    frames = model.preprocessing
    for data, is_training in ((train_set, True), (val_set, False)):
        data.transform = clips.transform(frames.size, frames.interpolation, frames.crop, is_training)
    print_trainable_parameters(model)
    result = fit(model, train_set, val_set, TrainConfig(max_epochs=args.epochs, batch_size=4), out=args.out)
    print(f"UAR {max(epoch['uar'] for epoch in result.history):.1%}; the best epoch is in {result.folder}")
