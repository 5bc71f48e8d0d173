"""`Feed`: the same batches whoever makes them, workers that stay, and what "auto" means."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from fe_adapter.data import EvalTransform, Feed, FrameSampler, TrainTransform, VideoFolder, feed, make_loader
from fe_adapter.errors import InputError
from tests.videos import make_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three clips of "happy" and two of "sad", of two sizes."""
    root = tmp_path_factory.mktemp("feed")
    for i in range(3):
        make_video(root / "happy" / f"{i}.mp4", num_frames=8 + i, size=(48, 64))
    for i in range(2):
        make_video(root / "sad" / f"{i}.mp4", num_frames=4 + i, size=(32, 96))
    return root


def open_videos(videos, transform=None, **options) -> VideoFolder:
    transform = transform or TrainTransform((24, 24))
    return VideoFolder(videos, sampler=FrameSampler(3), transform=transform, is_training=True, **options)


def epochs(source: Feed, count: int = 2) -> list[dict]:
    return [batch for epoch in range(count) for batch in source.epoch(epoch)]


def expected(data: VideoFolder, count: int = 2, **options) -> list[dict]:
    found = []
    for epoch in range(count):
        data.set_epoch(epoch)
        found += make_loader(data, 2, epoch=epoch, **options)
    return found


def same(batches: list[dict], others: list[dict]) -> bool:
    assert len(batches) == len(others)
    return all(
        torch.equal(a["video"], b["video"])
        and torch.equal(a["label"], b["label"])
        and torch.equal(a["index"], b["index"])
        and a["path"] == b["path"]
        for a, b in zip(batches, others, strict=True)
    )


@pytest.mark.parametrize("finishes", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_whoever_makes_them(videos, num_workers, finishes):
    """By workers of a former epoch; transforms finished here as on a GPU, of parts of several sizes."""
    data = open_videos(videos)
    source = Feed(data, 2, sampler="shuffle", seed=3, num_workers=num_workers, finishes=finishes)
    batches = epochs(source, 3)
    assert len(batches) == 3 * len(source) == 9
    assert same(batches, expected(data, 3, sampler="shuffle", seed=3))
    assert not same(batches[:3], batches[3:6])
    later = list(source.epoch(1, start_batch=2))  # as after a resume
    assert same(later, batches[5:6])
    assert source.waited > 0
    source.close()


def test_workers_live_across_epochs_cut_short_or_not(videos):
    source = Feed(open_videos(videos), 2, num_workers=1)
    children = []
    for epoch in (0, 1, 2):
        batches = source.epoch(epoch)
        next(batches)
        children.append(sorted(process.pid for process in source._loader._iterator._workers))
        if epoch != 1:
            list(batches)
    assert children[0] == children[1] == children[2]
    assert same(list(source.epoch(3)), expected(open_videos(videos), 4)[9:])
    source.close()


def test_shards_are_alike_and_hold_everything(videos):
    data = open_videos(videos)
    shards = [Feed(data, 2, shard=(i, 2), num_workers=0) for i in range(2)]
    indices = [[batch["index"].tolist() for batch in shard.epoch(0)] for shard in shards]
    assert indices == [[[0, 1], [4]], [[2, 3], [0, 1]]]  # the first batch once more
    assert [len(shard) for shard in shards] == [2, 2]
    resumed = [[batch["index"].tolist() for batch in shard.epoch(0, start_batch=2)] for shard in shards]
    assert resumed == [[[4]], [[0, 1]]]


def test_a_data_set_of_ones_own_is_asked_for_whole_items(videos):
    class Own:
        """What `ClipDataset` lists, and no more."""

        def __init__(self, data):
            self._data = data
            self.labels, self.paths, self.class_names = data.labels, data.paths, data.class_names
            self.set_epoch, self.sampler, self.transform = data.set_epoch, data.sampler, data.transform

        def __len__(self):
            return len(self._data)

        def __getitem__(self, index):
            return self._data[index]

    data = open_videos(videos)
    assert same(epochs(Feed(Own(data), 2, finishes=True, num_workers=0)), expected(data))
    plain = open_videos(videos, transform=lambda clip, seed: clip[..., :24, :24] // (1 + seed % 2))
    assert same(epochs(Feed(plain, 2, finishes=True, num_workers=0)), expected(plain))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_of_several_shapes_are_no_batch(videos, num_workers):
    source = Feed(open_videos(videos, transform=_narrower_by_chance), 4, num_workers=num_workers)
    with pytest.raises(
        InputError, match=r"^the clips of a batch must have one shape; .+\.mp4 is \(\d+, 3, 32, \d+\), "
    ):
        list(source.epoch(0))


def _narrower_by_chance(clip, seed):
    return clip[..., :32, : 16 + seed % 7]


def workers(data, device="cuda", batch_size=1, **options) -> int:
    """How many "auto" starts; the device need not be there."""
    source = Feed(data, batch_size, **options)
    source.device = torch.device(device)
    return source._auto_workers()


def test_auto_is_as_many_workers_as_are_of_use(videos, monkeypatch):
    data = open_videos(videos)
    for cores, expected in ((4, 3), (64, 5), (1, 1)):  # there are five batches of one
        monkeypatch.setattr(feed, "num_cores", lambda cores=cores: cores)
        assert workers(data) == expected
        assert workers(data, "cpu") == 0  # which trains
        assert workers(open_videos(videos, in_memory=True)) == 0
    monkeypatch.setattr(feed, "MOST_WORKERS", 2)
    monkeypatch.setattr(feed, "num_cores", lambda: 64)
    assert workers(data) == 2


def test_auto_starts_no_more_workers_than_shared_memory_holds_batches_of(videos, monkeypatch, tmp_path):
    data = open_videos(videos)
    monkeypatch.setattr(feed, "num_cores", lambda: 64)
    clip = 3 * 3 * 24 * 24 * feed.MAX_SENT
    for room in (2, 0):
        usage = types.SimpleNamespace(free=room * (3 * 2 * clip) + 1)
        monkeypatch.setattr(feed.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert workers(data, batch_size=2, finishes=True) == room


@pytest.mark.parametrize(
    ("cores", "in_memory", "counts"), [(2, False, [0, 1, 1]), (1, False, [0, 0]), (2, True, [0, 0])]
)
def test_auto_starts_a_worker_where_a_cpu_waited(videos, monkeypatch, cores, in_memory, counts):
    monkeypatch.setattr(feed, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(feed, "SLOW", 0.0)
    monkeypatch.setattr(feed, "num_cores", lambda: cores)
    data = open_videos(videos, in_memory=in_memory)
    source, found, batches = Feed(data, 2), [], []
    for epoch in range(len(counts)):
        batches += source.epoch(epoch)
        found.append(source._loader.num_workers)
    assert found == counts
    assert same(batches, expected(data, len(counts)))
    source.close()


def test_auto_keeps_a_data_set_that_cannot_be_sent(videos, monkeypatch, caplog):
    monkeypatch.setattr(feed, "num_cores", lambda: 4)
    assert workers(open_videos(videos, transform=lambda clip, seed: clip)) == 0
    assert "the data set cannot be sent to workers" in caplog.text


def test_a_quick_epoch_needs_no_worker(videos):
    source = Feed(open_videos(videos), 2)
    epochs(source, 3)
    assert source._loader.num_workers == 0


@pytest.mark.parametrize(
    ("script", "spec", "may"),
    [
        ("import os\nif __name__ == '__main__':", None, True),
        ("if ('__main__' == __name__):", None, True),
        ("fit()", None, False),
        ("fit()", "package.__main__", True),
        ("print(type(os).__name__)\nif type(os).__name__ == 'x': fit()", None, False),
    ],
    ids=["guarded", "guarded otherwise", "not guarded", "python -m", "another name"],
)
def test_a_script_does_not_run_again(videos, monkeypatch, tmp_path, caplog, script, spec, may):
    """Workers import the main script: one without the guard would train in each of them."""
    main = types.ModuleType("__main__")
    main.__file__, main.__spec__ = str(tmp_path / "script.py"), spec
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(feed, "num_cores", lambda: 4)
    assert workers(open_videos(videos)) == (3 if may else 0)
    assert ("workers need `if __name__" in caplog.text) != may
    if not may:
        with pytest.raises(InputError, match=r"^num_workers=2 cannot be honoured: workers need `if __name__"):
            next(Feed(open_videos(videos), 2, num_workers=2).epoch(0))


def test_workers_are_refused_a_data_set_that_cannot_be_sent(videos):
    data = open_videos(videos, transform=lambda clip, seed: clip)
    with pytest.raises(InputError, match=r"^num_workers=1 cannot be honoured: the data set cannot be sent"):
        make_loader(data, 2, num_workers=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_gpu_makes_what_a_cpu_makes(videos, num_workers):
    """But for a level here and there: from scaling, and where an operation rounds a sum of two products down."""
    data = open_videos(videos, TrainTransform((24, 24), randaugment=False))
    source = Feed(data, 2, device="cuda", num_workers=num_workers)
    for batch, other in zip(epochs(source), expected(data), strict=True):
        off = (batch["video"].cpu().int() - other["video"].int()).abs()
        assert off.max() <= 2
        assert (off > 0).float().mean() < 0.03
        assert torch.equal(batch["label"].cpu(), other["label"])
    augmented = open_videos(videos, TrainTransform((48, 64), scale=(1, 1), ratio=(4 / 3, 4 / 3)))
    augmented.paths, augmented.labels = augmented.paths[:3], augmented.labels[:3]  # which are of that size
    for batch, other in zip(epochs(Feed(augmented, 2, device="cuda")), expected(augmented), strict=True):
        assert (batch["video"].cpu().float() - other["video"].float()).abs().mean() < 1


def test_bad_options_are_refused(videos):
    data = VideoFolder(videos, sampler=FrameSampler(1), transform=EvalTransform((16, 16)))
    for num_workers, message in (("many", "num_workers='many' is neither"), (-1, "too small"), (10**6, "too large")):
        with pytest.raises(InputError, match=message):
            Feed(data, 2, num_workers=num_workers)
    with pytest.raises(InputError, match="batch_size=0 is too small"):
        next(Feed(data, 0).epoch())
