"""Packs: the same frames as of the videos, or nearly; resumable; and damage is noticed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from fe_adapter.cli import app as cli
from fe_adapter.data import ClipRecipe, EvalTransform, FrameSampler, VideoDataset, open_dataset
from fe_adapter.data import pack as packing
from fe_adapter.data.annotations import Cutting
from fe_adapter.data.check import check_data
from fe_adapter.data.pack import pack_data
from fe_adapter.errors import DiskFullError, InputError
from tests.published import make_dfew, make_frames, write
from tests.videos import make_video

BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 3, "num_heads": 2}']
FAST = ["--num-frames", "2", "--batch-size", "8", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]


@pytest.fixture
def videos(tmp_path):
    """Files of a variable frame rate, and folders of frames, of two sizes."""
    for i, name in enumerate(("happy", "sad")):
        make_video(tmp_path / "videos" / name / "a.mp4", 12, times=[0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 14, 20 + i])
        make_frames(tmp_path / "videos" / name / "b", size=(50, 40))
        make_video(tmp_path / "videos" / name / "c.mp4", 7, size=(64, 96))
    return tmp_path / "videos"


def opened(data, split=None, **options) -> VideoDataset:
    return open_dataset(data, split, sampler=FrameSampler(4), **options)


def test_raw_frames_of_full_size_are_the_same_bits(videos, tmp_path):
    pack_data(videos, tmp_path / "pack", codec="raw", size=None)
    before, after = opened(videos), opened(tmp_path / "pack")
    assert after.class_names == before.class_names
    assert after.labels == before.labels
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a["video"], b["video"])
    training = [
        opened(data, "train", is_training=True, val_fraction=0.4, seed=3) for data in (videos, tmp_path / "pack")
    ]
    for dataset in training:
        dataset.set_epoch(2)
    assert training[0].labels == training[1].labels


def test_jpeg_of_a_smaller_size_is_close_and_small(videos, tmp_path):
    said = []
    pack_data(videos, tmp_path / "pack", size=32, say=said.append)
    before, after = opened(videos), opened(tmp_path / "pack")
    for dataset in (before, after):
        dataset.transform = EvalTransform((32, 32))
    for a, b in zip(before, after, strict=True):
        # JPEG of quality 95 moves a pixel of smooth grey by a few levels; edges of the marks by more
        assert (a["video"].float() - b["video"].float()).abs().mean() < 4
    sizes = {(info.height, info.width) for info in after.infos.values()}
    assert sizes == {(32, 43), (40, 32), (32, 48)}
    assert said[0].startswith("about ")


def test_fewer_frames_are_evenly_spaced(videos, tmp_path):
    pack = pack_data(videos, tmp_path / "pack", max_frames=5, codec="raw")
    assert {len(video.pts) for video in pack.videos} == {5}
    assert pack.videos[0].pts[0] == 0


def test_an_interrupted_pack_goes_on_and_is_refused_until_it_is_whole(videos, tmp_path, monkeypatch):
    out = tmp_path / "pack"
    whole = pack_data(videos, tmp_path / "whole", codec="raw")
    monkeypatch.setattr(packing, "_SHARD_BYTES", 100_000)
    read = packing._packed
    count = 0

    def dies(*args):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(packing, "_packed", dies)
    with pytest.raises(KeyboardInterrupt):
        pack_data(videos, out, codec="raw")
    with pytest.raises(InputError, match="is not whole: 3 of 6 videos are packed; run the same data pack again"):
        opened(out)
    monkeypatch.setattr(packing, "_packed", read)
    with pytest.raises(InputError, match="is a pack of other quality"):
        pack_data(videos, out, codec="raw", quality=50)
    first = (out / "shard-00000.safetensors").stat().st_mtime_ns
    pack = pack_data(videos, out, codec="raw")
    assert (out / "shard-00000.safetensors").stat().st_mtime_ns == first
    assert pack.videos == whole.videos
    assert len(pack.shards) > len(whole.shards) == 1
    before, after = opened(tmp_path / "whole"), opened(out)
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(before, after, strict=True))
    write(videos / "happy" / "b" / "1.jpg", "changed")
    with pytest.raises(InputError, match="unreadable videos"):
        pack_data(videos, out, codec="raw")


def cut_off(out):
    file = out / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(out):
    file = out / "shard-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-200_000:] = bytes(b ^ 1 for b in content[-200_000:])  # pixels are at the end
    file.write_bytes(content)


DAMAGE = {
    "a shard cut off": (cut_off, "shard-00000.safetensors is cut off or no shard of a pack"),
    "a shard that is gone": (
        lambda out: (out / "shard-00000.safetensors").unlink(),
        "is cut off or no shard of a pack",
    ),
    "a bit": (flip_a_bit, "is damaged: frame .* of video .* is not what was packed"),
    "the index": (lambda out: write(out / "pack.json", "{}"), "is no index of a pack"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_noticed(videos, tmp_path, case):
    spoil, message = DAMAGE[case]
    pack_data(videos, tmp_path / "pack", codec="raw", size=None)
    spoil(tmp_path / "pack")
    with pytest.raises(InputError, match=message):
        list(opened(tmp_path / "pack"))


@pytest.mark.parametrize("case", ["a shard cut off", "a shard that is gone"])
def test_a_lost_shard_is_noticed_first_and_made_anew(videos, tmp_path, case, monkeypatch):
    monkeypatch.setattr(packing, "_SHARD_BYTES", 1)  # a shard for every video
    out = tmp_path / "pack"
    pack_data(videos, out)
    before = [item["video"] for item in opened(out)]
    DAMAGE[case][0](out)
    with pytest.raises(InputError, match=r"shard-00000\.safetensors is cut off"):
        opened(out)
    assert [finding.kind for finding in check_data(out).findings] == ["list"]
    assert len(pack_data(videos, out).shards) == 6
    assert all(torch.equal(a, item["video"]) for a, item in zip(before, opened(out), strict=True))


def test_what_cannot_be_packed_is_refused(videos, tmp_path, monkeypatch):
    for options, message in (
        ({"codec": "png"}, "codec='png' is not one of"),
        ({"quality": 0}, "quality=0 is too small"),
        ({"size": 0}, "size=0 is too small"),
        ({"max_frames": 0}, "max_frames=0 is too small"),
        ({"fold": 1}, "is no published data set"),
    ):
        with pytest.raises(InputError, match=message):
            pack_data(videos, tmp_path / "pack", **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match=r"packing needs about 0.0 GiB in .*, where 0.0 GiB are free"):
        pack_data(videos, tmp_path / "pack")
    monkeypatch.undo()

    def full(*args, **options):
        raise DiskFullError("cannot write: No space left on device")

    monkeypatch.setattr(packing, "atomic_write", full)
    assert cli.run(["data", "pack", str(videos), str(tmp_path / "pack")]) == 1
    assert not list((tmp_path / "pack").glob("*"))
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds the data themselves"):
        pack_data(videos, videos)
    pack_data(videos, tmp_path / "pack")
    with pytest.raises(InputError, match="is a pack already"):
        pack_data(tmp_path / "pack", tmp_path / "again")


def test_a_published_data_set_keeps_its_folds(tmp_path, capsys):
    data, out, run = f"dfew:{make_dfew(tmp_path / 'DFEW')}", tmp_path / "pack", tmp_path / "run"
    assert cli.run(["data", "pack", data, str(out), "--size", "32", "--soft-labels"]) == 0
    assert len(json.loads((out / "pack.json").read_text())["videos"]) == 35  # each once, in five folds
    for split in ("train", "val", "test"):
        before, after = opened(data, split, fold=2), opened(out, split, fold=2)
        assert (after.class_names, after.labels) == (before.class_names, before.labels)
    soft = opened(out, "train", fold=2, soft_labels=True)
    assert torch.equal(soft.targets, opened(data, "train", fold=2, soft_labels=True).targets)
    assert opened(out, "train", fold=2).targets is None
    with pytest.raises(InputError, match="has the folds 1, 2, 3, 4, 5; give one by --fold"):
        opened(out)
    cache = ["--last-blocks", "1", "--cache-features", str(tmp_path / "cache")]
    assert cli.run(["train", str(out), "--fold", "2", *BACKBONE, *FAST, *cache, "--out", str(run)]) == 0
    capsys.readouterr()
    assert cli.run(["eval", str(run), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_clips"] == 7
    assert cli.run(["eval", str(run), str(out), "--fold", "1"]) == 2
    assert "were in its training" in capsys.readouterr().err


def test_marked_ranges_keep_their_windows(tmp_path):
    make_video(tmp_path / "a.mp4", 30, fps=3)
    rows = ["path,start,end,label", "a.mp4,0,4,calm", "a.mp4,5,9,glad"]
    marks = write(tmp_path / "marks.csv", "\n".join(rows))
    pack_data(marks, tmp_path / "pack", codec="raw", size=None, cutting=Cutting(window=1.0), val_fraction=0.5)
    for split in ("train", "val"):
        before, after = opened(marks, split, val_fraction=0.5), opened(tmp_path / "pack", split)
        assert [clip.window for clip in after.clips] == [clip.window for clip in before.clips]
        assert all(torch.equal(a["video"], b["video"]) for a, b in zip(before, after, strict=True))
    recipe = ClipRecipe(num_frames=2)
    assert recipe.open(tmp_path / "pack", "val").origin["window"] == 1.0
    assert np.isclose(recipe.open(tmp_path / "pack", "val").clip_seconds, 1.0)
