"""Long videos, in a process of their own: memory that does not grow, and a time that is decoding plus the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("timm")

PREDICT = """
import json, resource, sys, time
import torch
from fe_adapter import VideoClassifier, predict_video
from fe_adapter.data import probe, sliding_windows
from fe_adapter.data.reading import frames_in_order

path, size, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
args = {"img_size": size, "patch_size": 16, "embed_dim": 192, "depth": depth, "num_heads": 3}
model = VideoClassifier.from_name("timm:vit_tiny_patch16_224", weights="none", backbone_args=args, num_classes=7,
                                  num_frames=8).eval()
model.clip_seconds = 2.0
info = probe(path)
start = time.perf_counter()
for _ in frames_in_order(info, range(info.num_frames)):
    pass
decoding = time.perf_counter() - start
count = len(sliding_windows(info.duration, 2.0, 1.0))
clips = torch.zeros(8, 8, 3, size, size, dtype=torch.uint8)
with torch.no_grad():
    model(clips)
    start = time.perf_counter()
    for _ in range(0, count, 8):
        model(clips)
    own = time.perf_counter() - start
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
prediction = predict_video(model, info)
whole = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(prediction.windows) == count
print(json.dumps({"windows": count, "decoding": decoding, "model": own, "whole": whole,
                  "ratio": whole / (decoding + own), "before": before / 1024, "peak": peak / 1024}))
"""


def write(path: Path, minutes: int) -> Path:
    """A small video of noise that moves, a key frame every ten seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.options = {"g": "250", "preset": "veryfast"}
        for i in range(60 * 25 * minutes):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * i, 1), format="rgb24")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_minutes_and_little_more_time_than_it_must(tmp_path):
    figures = {}
    for minutes in (1, 10, 60):
        path = write(tmp_path / f"{minutes}.mp4", minutes)
        done = subprocess.run([sys.executable, "-c", PREDICT, str(path), "32", "2"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        figures[minutes] = json.loads(done.stdout)
    print(json.dumps(figures, indent=2))
    assert figures[60]["peak"] < figures[1]["peak"] + 32, figures  # MiB; numbers of an hour's frames and rows are 10
    assert figures[60]["ratio"] < 1.3, figures
