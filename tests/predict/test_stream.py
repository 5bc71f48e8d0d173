"""`StreamingClassifier`: frame by frame what whole clips give, in memory that does not grow."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, StreamingClassifier, VideoClassifier
from fe_adapter.errors import InputError
from tests.models.test_classifier import classifier
from tests.vits import build, size

CONFIGS = {
    "static": FEAdapterConfig(bottleneck=4, dilation=2, causal=True),
    "dynamic": FEAdapterConfig(bottleneck=4, causal=True, max_dilation=2.5),
    "both places": FEAdapterConfig(bottleneck=4, causal=True, max_dilation=2, positions=("attn", "mlp")),
    "spatial, one block": FEAdapterConfig(bottleneck=4, kernel_size=(3, 3, 3), dilation=1, causal=True, blocks=(1,)),
}


def clips(B: int, T: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (B, T, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_frame_gives_what_the_clip_gives(name):
    model = classifier(config=CONFIGS[name], num_frames=4)
    video, stream = clips(2, 9), StreamingClassifier(model, 2)
    with torch.no_grad():
        for t in range(9):
            torch.testing.assert_close(stream(video[:, t]), model(video[:, : t + 1]), rtol=1e-4, atol=1e-5)
    assert stream.num_frames == [9, 9]


def test_a_window_averages_the_last_frames_alone():
    model, video = classifier(config=CONFIGS["dynamic"], num_frames=4), clips(2, 8)
    stream = StreamingClassifier(model, 2, window=3)
    with torch.no_grad():
        logits = torch.stack([stream(video[:, t]) for t in range(8)], 1)
        model(video)
        features = model.frame_features(model.normalized(video)).unflatten(0, (2, 8))
        for t in range(8):
            expected = model.classify(features[:, max(0, t - 2) : t + 1].mean(1))
            torch.testing.assert_close(logits[:, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_streams_begin_again_each_on_its_own(window):
    model, video = classifier(config=CONFIGS["dynamic"], num_frames=4), clips(3, 8)
    stream, alone = StreamingClassifier(model, 3, window=window), StreamingClassifier(model, window=window)
    for t in range(5):
        stream(video[:, t])
    stream.reset([1])
    assert stream.num_frames == [5, 0, 5]
    for t in range(5, 8):
        torch.testing.assert_close(stream(video[:, t])[1:2], alone(video[1:2, t]), rtol=1e-4, atol=1e-5)
    stream.reset(torch.tensor([True, False, True]))
    assert stream.num_frames == [0, 3, 0]
    stream.reset()
    alone.reset()
    torch.testing.assert_close(stream(video[:, 0])[:1], alone(video[:1, 0]), rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow():
    stream = StreamingClassifier(classifier(config=CONFIGS["dynamic"]), window=2)
    sizes = []
    for frame in clips(1, 40)[0]:
        stream(frame[None])
        sizes.append(sum(state.hidden.numel() for state in stream._adapters._states.values()))
    assert sizes[-1] == sizes[8]


@pytest.mark.parametrize("name", ["timm dinov3", "timm siglip", "hf vit", "hf beit", "open_clip", "torchvision"])
def test_backbones_of_every_library(name):
    config = FEAdapterConfig(bottleneck=4, causal=True, max_dilation=2)
    model = VideoClassifier(build(name), 3, config=config, num_frames=3).eval()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    video = torch.randint(0, 256, (2, 5, 3, *size(name)), dtype=torch.uint8)
    stream = StreamingClassifier(model, 2)
    with torch.no_grad():
        logits = [stream(video[:, t]) for t in range(5)]
        torch.testing.assert_close(logits[-1], model(video), rtol=1e-4, atol=1e-5)
    assert model.vit.fe_adaptation.num_frames == 5  # of the clip; streams leave it alone


@pytest.mark.parametrize("tune", ["head", "full"])
def test_models_without_adapters(tune):
    model, video = classifier(tune), clips(2, 3)
    stream = StreamingClassifier(model, 2)
    with torch.no_grad():
        torch.testing.assert_close([stream(video[:, t]) for t in range(3)][-1], model(video), rtol=1e-4, atol=1e-5)


def test_a_frame_that_fails_lets_streams_begin_again(monkeypatch):
    model, video = classifier(config=CONFIGS["static"]), clips(1, 3)
    stream, fresh = StreamingClassifier(model), StreamingClassifier(model)
    stream(video[:, 0])
    monkeypatch.setattr(model.vit.blocks[1].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream(video[:, 1])
    monkeypatch.undo()
    assert stream.num_frames == [0]
    assert torch.equal(stream(video[:, 2]), fresh(video[:, 2]))


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(InputError, match=r"later frames.*fe-adapter train --causal"):
        StreamingClassifier(classifier())
    with pytest.raises(InputError, match=r"streams=\[5\] are not among the 2 streams"):
        StreamingClassifier(classifier("head"), 2).reset([5])
    for pool in ("concat", "attention"):
        with pytest.raises(InputError, match=f"'{pool}' needs whole clips"):
            StreamingClassifier(classifier("head", temporal_pool=pool))
    model = classifier(config=CONFIGS["static"])
    with pytest.raises(InputError, match=r"training mode; call model\.eval"):
        StreamingClassifier(model.train())
    stream = StreamingClassifier(model.eval(), 2)
    with pytest.raises(InputError, match=r"a frame of 2 streams is \(2, 3, h, w\); got \(1, 3, 32, 32\)"):
        stream(clips(1, 1)[:, 0])
    with pytest.raises(InputError, match="frames of 32x32; got 32x16"):
        stream(clips(2, 1)[:, 0, ..., :16])
    with pytest.raises(InputError, match="window=0 is too small"):
        StreamingClassifier(model, window=0)


def test_a_dilation_without_an_upper_bound_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        StreamingClassifier(classifier(config=FEAdapterConfig(bottleneck=4, causal=True)))
    assert "memory grows; train with --max-dilation" in caplog.text
