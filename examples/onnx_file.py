"""Export a trained model to ONNX, and run the file on a video, as one clip, by onnxruntime.

    pip install 'fe-adapter[export,video]'
    python examples/onnx_file.py run/best clip.mp4 --out model.onnx

``fe-adapter export run model.onnx`` writes the same file.
"""

import argparse
import json

import onnxruntime

from fe_adapter import load_classifier
from fe_adapter.data import EvalTransform, FrameSampler, probe, read_frames
from fe_adapter.sharing.export import export_onnx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="an adapter folder")
parser.add_argument("video")
parser.add_argument("--out", default="model.onnx")
args = parser.parse_args()

model = load_classifier(args.model)
export_onnx(model, args.out)  # which runs it beside the model, on random clips, before it is there

session = onnxruntime.InferenceSession(args.out, providers=["CPUExecutionProvider"])
about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
info = probe(args.video)
frames = read_frames(info, FrameSampler(about["fe_adapter.num_frames"])(info))
size = (about["fe_adapter.height"], about["fe_adapter.width"])
clip = EvalTransform(size, model.preprocessing.interpolation, model.preprocessing.crop)(frames)  # uint8 (T, 3, h, w)
(probabilities,) = session.run(["probabilities"], {"video": clip[None].numpy()})
print(dict(zip(about["fe_adapter.class_names"], probabilities[0].tolist(), strict=True)))
