"""`VideoClassifier`: what it computes, trains and refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, VideoClassifier
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adapters
from tests.vits import BACKBONES, build, size

NAME = "timm:vit_tiny_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
CONFIG = FEAdapterConfig(bottleneck=4)


def classifier(tune: str = "adapter", **options) -> VideoClassifier:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"class_names": ["sad", "happy", "calm"], "num_frames": 2, "tune": tune, **options}
    if tune == "adapter":
        options = {"config": CONFIG, **options}
    model = VideoClassifier.from_name(NAME, weights="none", backbone_args=ARGS, **options)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    return model.eval()


def video(T: int = 2, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (2, T, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_classifies(name):
    torch.manual_seed(0)
    model = VideoClassifier(build(name), 3, config=FEAdapterConfig(bottleneck=4), num_frames=2)
    clip = torch.randint(0, 256, (2, 2, 3, *size(name)), dtype=torch.uint8)
    logits = model(clip)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model(clip / 255), logits)
    logits.sum().backward()
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None} == {"vit", "head"}


def test_the_frame_feature_is_the_class_token_after_the_norm():
    model = classifier(tune="head")
    clip = video()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    images = (clip.flatten(0, 1) / 255 - mean) / std
    features = model.vit.forward_features(images)[:, 0].view(2, 2, 24)
    torch.testing.assert_close(model(clip), model.head(features.mean(1)))
    order = classifier(tune="full", temporal_pool="concat")
    assert order.head.in_features == 48
    assert not torch.allclose(order(clip), order(clip.flip(1)))
    torch.testing.assert_close(model(clip), model(clip.flip(1)))


def test_attention_over_frames_and_their_positions():
    model = classifier(tune="head", temporal_pool="attention")
    trained = {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {"pool", "head"}
    pool, clip = model.pool, video()
    assert not torch.equal(model(clip), model(clip.flip(1)))
    features = model.frame_features(model.normalized(clip)).unflatten(0, (2, 2))
    rows = torch.cat([pool.token.expand(2, 1, -1), features + pool.positions], 1)
    weight, bias = (p.chunk(3) for p in (pool.attention.in_proj_weight, pool.attention.in_proj_bias))
    q, k, v = (nn.functional.linear(rows, *p) for p in zip(weight, bias, strict=True))
    mixed = (q[:, :1] @ k.transpose(1, 2) / 24**0.5).softmax(-1) @ v
    torch.testing.assert_close(model(clip), model.head(pool.attention.out_proj(mixed[:, 0])))
    with pytest.raises(InputError, match="built for 2 frames; got 1"):
        model(clip[:, :1])


def test_what_trains():
    parts = {"adapter": {"fe_adapter", "head"}, "head": {"head"}, "full": {"vit", "head"}}
    for tune, expected in parts.items():
        model = classifier(tune).train()
        trained = [key for key, p in model.named_parameters() if p.requires_grad]
        kinds = {"fe_adapter" if "fe_adapter" in key else key.split(".")[0] for key in trained}
        assert kinds == expected
        assert model.vit.blocks[0].training == (tune == "full")


def test_other_numbers_of_frames_and_copies():
    model = classifier()
    longer = model(video(T=5))
    assert [adapter.num_frames for adapter in get_adapters(model)] == [5, 5]
    short = model(video())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(video()), short)
        assert torch.equal(twin(video(T=5)), longer)


def test_resize_is_asked_for():
    clip = torch.zeros(1, 2, 3, 40, 32, dtype=torch.uint8)
    with pytest.raises(InputError, match="takes frames of 32x32; got 40x32"):
        classifier()(clip)
    assert classifier(resize=True)(clip).shape == (1, 3)


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 32), InputError, r"a video is \(B, T, 3, h, w\); got \(2, 3, 32, 32\)"),
        (torch.zeros(2, 3, 2, 32, 32), InputError, "a video is"),
        (torch.zeros(2, 2, 3, 32, 32, dtype=torch.long), TypeError, "uint8, or float"),
    ],
)
def test_bad_videos_are_refused(clip, error, message):
    with pytest.raises(error, match=message):
        classifier()(clip)


def test_bad_arguments_are_refused():
    vit = build("timm vit")
    cases = [
        ({"num_frames": 2}, "give num_classes or class_names"),
        ({"num_classes": 2, "class_names": ["a"], "num_frames": 2}, "num_classes=2, but there are 1"),
        ({"class_names": ["a", "a"], "num_frames": 2}, "must be a list of different names"),
        ({"num_classes": 2}, "give num_frames"),
        ({"num_classes": 2, "num_frames": 2, "tune": "some"}, "'some' is not one of"),
        ({"num_classes": 2, "num_frames": 2, "tune": "head", "config": CONFIG}, "tune='head' uses no adapters"),
        ({"num_classes": 2, "num_frames": 2, "head_dropout": 1.0}, "outside"),
        ({"num_classes": 2, "num_frames": 1, "tune": "full", "temporal_pool": "concat"}, "at least two frames"),
        ({"num_classes": 2, "num_frames": 1, "temporal_pool": "attention"}, "'attention' needs at least two frames"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            VideoClassifier(copy.deepcopy(vit), **arguments)


class Full(io.BufferedWriter):
    """A file on a full disk."""

    def write(self, content):
        raise OSError(28, "No space left on device")
