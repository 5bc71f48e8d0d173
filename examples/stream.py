"""Answer a camera, an address or a file frame by frame, at the cost of one frame each.

    fe-adapter train videos --backbone timm:vit_small_patch16_224 --causal --max-dilation 4 --out run
    python examples/stream.py run/best 0

``fe-adapter predict run 0 --stream`` does the same, leaves out the frames for which it is too slow, and writes a CSV.
"""

import argparse

import torch

from fe_adapter import StreamingClassifier, load_classifier
from fe_adapter.data import EvalTransform, stream_frames
from fe_adapter.predict.live import at_rate, frames_per_second

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="an adapter folder, with causal adapters")
parser.add_argument("source", help="the number of a camera, an address such as rtsp://…, or a file")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

model = load_classifier(args.model).to(args.device)
expects = model.preprocessing
transform = EvalTransform(expects.size, expects.interpolation, expects.crop)
stream = StreamingClassifier(model, window=model.num_frames)  # averages over as many frames as a clip of training has

for seconds, frame in at_rate(stream_frames(args.source), frames_per_second(model)):  # as many a second, too
    logits = stream(transform(frame[None]).to(args.device))  # (1, 3, h, w) to (1, C)
    probabilities = (logits[0] / model.temperature).softmax(-1)
    best = int(probabilities.argmax())
    print(f"{seconds:8.2f} s  {model.class_names[best]} {probabilities[best]:.1%}", flush=True)
