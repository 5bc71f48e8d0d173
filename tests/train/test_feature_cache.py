"""Tokens of the frozen prefix: the same logits and losses, and a folder that is right or refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, VideoClassifier, apply_memory_policy
from fe_adapter.cli import app as cli
from fe_adapter.data import EvalTransform, FrameSampler, open_dataset
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.prefix import prefix_tokens
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.feature_cache import cache_features
from fe_adapter.train.recipe import fit
from tests.cli.test_commands import BACKBONE, FAST, videos  # noqa: F401 (a fixture)
from tests.vits import build

LATE = FEAdapterConfig(bottleneck=8, blocks=(1,))


def classifier(name: str = "timm vit", **options) -> VideoClassifier:
    model = VideoClassifier(build(name), 2, class_names=["offset", "onset"], num_frames=4, **{"config": LATE} | options)
    for adapter in get_adapters(model):
        nn.init.normal_(adapter.temporal_conv.weight)
    return model


def clips(path, **options):
    sampler = FrameSampler(4, "uniform", 1)
    return open_dataset(path, **{"sampler": sampler, "transform": EvalTransform((32, 32))} | options)


@pytest.mark.parametrize(
    "name", ["timm vit", "timm dinov3", "hf vit", "hf beit", "hf clip vision", "open_clip", "torchvision"]
)
def test_going_on_from_tokens_gives_the_same_bits(name):
    model, video = classifier(name).eval(), torch.rand(3, 4, 3, 32, 32)
    tokens = prefix_tokens(model.vit, lambda: model(video)).unflatten(0, (3, 4))
    expected = model(video)
    assert torch.equal(model(tokens), expected)
    assert torch.equal(model(video), expected)  # nothing is left behind


def test_training_has_the_same_losses(videos, tmp_path):  # noqa: F811
    losses = []
    for name in ("plain", "cached"):
        torch.manual_seed(0)
        model, dataset = classifier(), clips(videos)
        if name == "cached":
            dataset = cache_features(model, dataset, tmp_path / "cache", batch_size=4, progress=False)
            assert dataset[0]["video"].shape == (4, 17, 48)
        config = TrainConfig(max_epochs=2, batch_size=2, lr=1e-2, tracker=None)
        fit(model, dataset, dataset, config, out=tmp_path / name, progress=False)
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_cache_is_used_again_goes_on_and_is_checked(videos, tmp_path, monkeypatch):  # noqa: F811
    from fe_adapter.train import feature_cache

    monkeypatch.setattr(feature_cache, "_SHARD_BYTES", 2 * 4 * 17 * 48 * 4)  # two clips
    model, dataset, folder = classifier(), clips(videos), tmp_path / "cache"
    cached = cache_features(model, dataset, folder, progress=False)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 3
    items = [cached[i]["video"] for i in range(len(cached))]

    index = json.loads((folder / "index.json").read_text())
    index["shards"].pop()
    (folder / "index.json").write_text(json.dumps(index))  # as if interrupted
    shards[2].unlink()
    before = shards[0].stat().st_mtime_ns
    again = cache_features(model, dataset, folder, progress=False)
    assert shards[0].stat().st_mtime_ns == before
    assert all(torch.equal(again[i]["video"], item) for i, item in enumerate(items))

    content = bytearray(shards[0].read_bytes())
    content[-1] ^= 1
    shards[0].write_bytes(content)
    with pytest.raises(InputError, match="has changed since it was written"):
        cache_features(model, dataset, folder, progress=False)[0]
    with pytest.raises(InputError, match="are of another transform"):
        cache_features(model, clips(videos, transform=EvalTransform((32, 31))), folder)


def test_a_changed_file_is_refused(videos, tmp_path):  # noqa: F811
    shutil.copytree(videos, tmp_path / "videos")
    dataset = clips(tmp_path / "videos")
    cache_features(classifier(), dataset, tmp_path / "cache", progress=False)
    os.utime(dataset.paths[2], ns=(0, 1))
    with pytest.raises(InputError, match="are of other files; remove"):
        cache_features(classifier(), dataset, tmp_path / "cache")


@pytest.mark.parametrize("policy", ["bf16", "int8", "nf4"])
def test_rounded_weights_are_others(videos, tmp_path, policy):  # noqa: F811
    if policy != "bf16":
        pytest.importorskip("bitsandbytes")
    cache_features(classifier(), clips(videos), tmp_path, progress=False)
    with pytest.raises(InputError, match="are of other weights; remove"):
        cache_features(apply_memory_policy(classifier(), policy), clips(videos), tmp_path)


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "identity": {', "[]"])
def test_a_damaged_index_is_refused_in_one_line(videos, tmp_path, content):  # noqa: F811
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json is no .*; remove the folder$"):
        cache_features(classifier(), clips(videos), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"clips_per_shard": 0}, {"clips_per_shard": "2"}, {"shards": [{"file": "../x", "blake2b": ""}]}, {"format": 2}],
)
def test_an_index_is_what_was_written(videos, tmp_path, changes):  # noqa: F811
    cache_features(classifier(), clips(videos), tmp_path, progress=False)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | changes))
    with pytest.raises(InputError, match=rf"is no index of cached features: {min(changes)}.*; remove the folder$"):
        cache_features(classifier(), clips(videos), tmp_path)


def test_going_on_needs_space_for_what_is_missing(videos, tmp_path, monkeypatch):  # noqa: F811
    from fe_adapter.train import feature_cache

    clip_bytes = 4 * 17 * 48 * 4
    monkeypatch.setattr(feature_cache, "_SHARD_BYTES", 2 * clip_bytes)
    cache_features(classifier(), clips(videos), tmp_path, progress=False)
    index = json.loads((tmp_path / "index.json").read_text())
    last = index["shards"].pop()
    (tmp_path / "index.json").write_text(json.dumps(index))  # as if interrupted
    missing = clip_bytes * (len(clips(videos)) - 2 * len(index["shards"]))
    free = type("Usage", (), {"free": missing - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(InputError, match="caching needs"):
        cache_features(classifier(), clips(videos), tmp_path, progress=False)
    free.free = missing
    cache_features(classifier(), clips(videos), tmp_path, progress=False)
    assert json.loads((tmp_path / "index.json").read_text())["shards"][-1] == last


def test_what_cannot_be_cached(videos, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(InputError, match="nothing to cache"):
        cache_features(classifier(config=FEAdapterConfig(bottleneck=8)), clips(videos), tmp_path)
    with pytest.raises(InputError, match="at random cannot be cached"):
        cache_features(classifier(), clips(videos, is_training=True), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="caching needs"):
        cache_features(classifier(), clips(videos), tmp_path / "full")


def test_the_command(videos, tmp_path, capsys):  # noqa: F811
    arguments = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--cache-features", str(tmp_path / "c")]
    assert "nothing to cache" in fails_last(capsys, [*arguments, "--out", str(tmp_path / "no")])
    assert cli.run([*arguments, "--last-blocks", "1", "--out", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"train", "val"}


def fails_last(capsys, arguments) -> str:
    capsys.readouterr()
    assert cli.run(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]
