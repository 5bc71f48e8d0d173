"""Several views of a video: which frames, which parts, and the mean over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fe_adapter.data import EvalTransform, FrameSampler, MultiView, VideoFolder, VideoInfo, Views
from fe_adapter.errors import InputError
from fe_adapter.evaluate import evaluate
from fe_adapter.models import VideoClassifier
from tests.published import Image, make_frames
from tests.vits import build

INFO = VideoInfo("x.mp4", np.arange(24), 0.1, 48, 64)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (FrameSampler(4), [[1, 7, 13, 19], [4, 10, 16, 22]]),  # a quarter and three quarters into parts of six frames
        (FrameSampler(4, "stride", 2), [[0, 2, 4, 6], [17, 19, 21, 23]]),  # from the start, and up to the end
        (FrameSampler(2, "dense"), [[0, 1], [22, 23]]),
    ],
)
def test_clips_are_spread_over_the_video(sampler, expected):
    assert [sampler(INFO, view=(k, 2)) for k in range(2)] == expected
    assert sampler(INFO, view=(0, 1)) == sampler(INFO)


def test_views_are_read_as_they_are_written():
    assert Views.read("16x2x2") == Views(16, 2, 2)
    assert str(Views.read("8×1×3")) == "8x1x3"
    for text in ("16", "16x2", "axbxc", "16x2x2x2", "-1x1x1", ""):
        with pytest.raises(InputError, match=r"is no FRAMESxCLIPSxCROPS"):
            Views.read(text)
    with pytest.raises(InputError, match="clips=0 is too small"):
        Views.read("16x0x1")


@pytest.fixture
def videos(tmp_path):
    """Two wide clips, whose columns get brighter to the right."""
    for i, name in enumerate(("calm", "glad")):
        make_frames(tmp_path / name / "1", names="{:02d}.png", size=(32, 64))
        for frame, file in enumerate(sorted((tmp_path / name / "1").iterdir())):
            ramp = np.broadcast_to(np.arange(64)[None, :, None] * 2 + frame + i, (32, 64, 3)).astype(np.uint8)
            Image.fromarray(ramp).save(file)
    return VideoFolder(tmp_path, sampler=FrameSampler(2), transform=EvalTransform((32, 32)))


def test_crops_go_from_edge_to_edge(videos):
    views = MultiView(videos, Views(2, clips=1, crops=3))
    assert len(views) == 6
    starts = [item["video"][0, 0, 0, 0].item() - videos.frames(0)[0, 0, 0, 0].item() for item in views]
    assert starts[:3] == [0, 32, 64]
    assert views.labels == [0, 0, 0, 1, 1, 1]
    assert torch.equal(views[1]["video"], videos[0]["video"])  # the middle one is what a single view sees
    assert torch.equal(MultiView(videos, Views(2))[1]["video"], videos[1]["video"])


def test_probabilities_are_averaged_over_the_views_of_a_video(videos):
    model = VideoClassifier(build("timm vit"), class_names=["calm", "glad"], num_frames=2).eval()
    views = MultiView(videos, Views(2, clips=2, crops=2))
    result = evaluate(model, views, batch_size=3, description="")
    assert result.paths == tuple(videos.paths)
    assert result.labels.tolist() == [0, 1]
    with torch.no_grad():
        each = model(torch.stack([item["video"] for item in views])).softmax(-1)
    torch.testing.assert_close(result.probabilities, each.view(2, 4, 2).mean(1))
    assert each[0].ne(each[3]).any()
