"""Several adapters on one frozen backbone, each with classes of its own: added, switched, mixed in a batch, saved.

    python examples/several_adapters.py --out adapters

Fresh adapters know nothing: train each after ``set_adapter``, by ``fit``, or ``load_adapter(model, folder, name=…)``.
"""

import argparse
import json

import torch

import fe_adapter as fe

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backbone", default="timm:vit_small_patch16_224")
parser.add_argument("--backbone-args", type=json.loads, default={}, help="as JSON")
parser.add_argument("--weights", default="pretrained", help="pretrained, a FILE, or none: random ones")
parser.add_argument("--out", default="adapters")
args = parser.parse_args()

model = fe.VideoClassifier.from_name(
    args.backbone, weights=args.weights, backbone_args=args.backbone_args, class_names=["sad", "happy"], num_frames=4
).eval()
fe.add_adapter(model, "pain", class_names=["none", "some"])
video = torch.randint(0, 256, (2, 4, 3, *model.preprocessing.size), dtype=torch.uint8)  # two clips, (B, T, 3, h, w)

for name in fe.list_adapters(model):
    fe.set_adapter(model, name)  # it runs, trains and is saved; the others wait, frozen
    with torch.no_grad():
        print(name, dict(zip(model.class_names, model(video)[0].softmax(-1).tolist(), strict=True)))
    fe.save_adapter(model, f"{args.out}/{name}")

fe.load_adapter(model, f"{args.out}/pain", name="pain-at-night")  # a third, from a folder
with torch.no_grad(), fe.use_adapters(model, ["default", "pain-at-night"]):  # one for each clip of the batch
    print("mixed", model(video).softmax(-1).tolist())
