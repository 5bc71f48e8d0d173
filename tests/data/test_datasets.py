"""Which frames make a clip, what becomes of them, and the data sets and loaders of clips."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from fe_adapter.data import (
    Clip,
    ClipRecipe,
    EvalTransform,
    FrameSampler,
    TrainTransform,
    VideoCSV,
    VideoDataset,
    VideoFolder,
    VideoInfo,
    make_loader,
    open_dataset,
    sliding_windows,
)
from fe_adapter.data.loader import one_line_errors
from fe_adapter.errors import InputError
from tests.videos import levels, make_sound, make_video


def video_of(num_frames: int, fps: int = 10) -> VideoInfo:
    return VideoInfo("x.mp4", np.arange(num_frames), 1 / fps, 48, 64)


@pytest.mark.parametrize(
    ("sampler", "num_frames", "expected"),
    [
        (FrameSampler(4), 12, [1, 4, 7, 10]),  # the middles of four parts of three frames
        (FrameSampler(4), 4, [0, 1, 2, 3]),
        (FrameSampler(4), 2, [0, 0, 1, 1]),
        (FrameSampler(1), 9, [4]),
        (FrameSampler(3, "stride", 2), 11, [3, 5, 7]),
        (FrameSampler(3, "stride", 2), 5, [0, 2, 4]),
        (FrameSampler(4, "stride", 4), 6, [0, 4, 5, 5]),  # too short: the last frame again
        (FrameSampler(3, "dense"), 7, [2, 3, 4]),
        (FrameSampler(8, "dense"), 3, [0, 1, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_test_clips_are_the_middle(sampler, num_frames, expected):
    assert sampler(video_of(num_frames)) == expected


@pytest.mark.parametrize("sampling", ["uniform", "stride", "dense"])
def test_training_clips_vary_within_their_bounds(sampling):
    sampler, info, random = FrameSampler(4, sampling, 2), video_of(24), np.random.default_rng(0)
    clips = np.array([sampler(info, random) for _ in range(300)])
    assert (np.diff(clips, axis=1) >= 0).all()
    assert clips.min() == 0
    assert clips.max() == 23
    if sampling == "uniform":  # every frame of every part has its turn
        assert [sorted(set(column)) for column in clips.T] == [list(range(6 * i, 6 * i + 6)) for i in range(4)]
    else:
        step = 2 if sampling == "stride" else 1
        assert (np.diff(clips, axis=1) == step).all()
        assert set(clips[:, 0]) == set(range(24 - 3 * step))


def test_a_recipe_is_its_sampler_and_transforms():
    recipe = ClipRecipe(4, "stride", 2, flip=False)
    assert recipe.sampler() == FrameSampler(4, "stride", 2)
    assert recipe.transform((8, 9), "bicubic", 0.9) == EvalTransform((8, 9), "bicubic", 0.9)
    training = recipe.transform((8, 9), "bicubic", 0.9, is_training=True)
    assert training == TrainTransform((8, 9), flip=False, interpolation="bicubic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 is too small"),
        ({"sampling": "all"}, "sampling='all' is not one of"),
        ({"stride": 0}, "stride=0 is too small"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0 is outside \(0, 1\)"),
        ({"val_fraction": float("nan")}, "val_fraction=nan is outside"),
        ({"on_error": "ignore"}, "on_error='ignore' is not one of"),
    ],
)
def test_a_recipe_validates_itself(options, message):
    with pytest.raises(InputError, match=message):
        ClipRecipe(**options)


def test_a_window_bounds_the_frames():
    info = video_of(40)
    assert FrameSampler(4)(info, window=(1.0, 2.2)) == [11, 14, 17, 20]
    random = np.random.default_rng(0)
    for sampling in ("uniform", "stride", "dense"):
        clips = [FrameSampler(3, sampling, 3)(info, random, (1.0, 2.2)) for _ in range(100)]
        assert {i for clip in clips for i in clip} <= set(range(10, 22))


def test_the_time_that_a_clip_spans():
    info = video_of(50)
    spans = [FrameSampler(4, kind, 5).seconds(info) for kind in ("uniform", "stride", "dense")]
    assert spans == pytest.approx([5.0, 2.0, 0.4])


def test_windows_cover_a_video():
    assert sliding_windows(0.5, 1.0, 0.5) == [(0.0, 0.5)]
    assert sliding_windows(2.0, 1.0, 0.5) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
    assert sliding_windows(2.2, 1.0, 0.5)[-2:] == [(1.0, 2.0), (pytest.approx(1.2), 2.2)]
    with pytest.raises(InputError, match="over 100000; take a longer step"):
        sliding_windows(10.0, 1.0, 1e-6)
    for length, step in ((0, 1), (1, 0), (-1, 1), (float("inf"), 1), (1, float("nan"))):
        with pytest.raises(InputError, match="both must be positive"):
            sliding_windows(2.0, length, step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 is too small"),
        ({"num_frames": 4, "stride": 0}, "stride=0 is too small"),
        ({"num_frames": 4, "sampling": "random"}, "'random' is not one of"),
    ],
)
def test_bad_samplers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FrameSampler(**options)


def test_the_middle_is_cut_out_and_scaled():
    clip = torch.zeros(2, 3, 40, 80, dtype=torch.uint8)
    clip[..., 20:60] = 100  # a square in the middle
    for size in ((20, 20), (40, 40), (80, 80)):
        result = EvalTransform(size)(clip)
        assert result.shape == (2, 3, *size)
        assert result.dtype == torch.uint8
        assert (result == 100).all()
    wide = EvalTransform((20, 40))(clip)
    assert (wide[..., 11:29] == 100).all()
    assert (wide[..., [0, -1]] == 0).all()


def test_training_clips_are_transformed_as_a_whole_and_by_the_seed_alone():
    torch.manual_seed(0)
    clip = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8).repeat(4, 1, 1, 1)
    for transform in (TrainTransform((24, 24), randaugment=False), TrainTransform((24, 24))):
        state = torch.get_rng_state()
        results = [transform(clip, seed) for seed in range(20)]
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(frame, result[0]) for result in results for frame in result)
        assert all(torch.equal(transform(clip, seed), results[seed]) for seed in (3, 11))
        assert len({result.numpy().tobytes() for result in results}) == 20
    flips = TrainTransform((40, 50), scale=(1, 1), ratio=(1.25, 1.25), randaugment=False)
    mirrored = [torch.equal(flips(clip, seed), clip.flip(-1)) for seed in range(40)]
    assert 8 < sum(mirrored) < 32
    assert all(m or torch.equal(flips(clip, seed), clip) for seed, m in enumerate(mirrored))


@pytest.fixture
def root(tmp_path):
    """Three clips of "happy" and two of "sad"; their numbers of frames tell them apart."""
    for i in range(3):
        make_video(tmp_path / "data" / "happy" / "deep" / f"{i}.mp4", num_frames=8 + i)
    for i in range(2):
        make_video(tmp_path / "data" / "sad" / f"{i}.mkv", num_frames=4 + i)
    (tmp_path / "data" / "sad" / "notes.txt").write_text("not a video, and not one by its name")
    return tmp_path / "data"


def csv_file(root, *lines):
    path = root / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_folder_for_every_class(root):
    data = VideoFolder(root, sampler=FrameSampler(4), transform=EvalTransform((16, 16)))
    assert data.class_names == ("happy", "sad")
    assert data.labels == [0, 0, 0, 1, 1]
    item = data[3]
    assert item["video"].shape == (4, 3, 16, 16)
    assert levels(item["video"]) == [0, 1, 2, 3]
    assert (item["label"], item["index"]) == (1, 3)
    assert item["path"] == str(root / "sad" / "0.mkv")
    assert VideoFolder(root, class_names=["sad", "happy"], sampler=FrameSampler(1)).labels == [1, 1, 1, 0, 0]
    assert data.clip_seconds == pytest.approx(0.8)


def test_a_csv_is_the_same_data(root):
    path = csv_file(root, "label,path", "sad,sad/0.mkv", "happy,happy/deep/2.mp4", f"happy,{root}/happy/deep/0.mp4")
    data = VideoCSV(path, sampler=FrameSampler(2))
    assert data.class_names == ("happy", "sad")
    assert data.labels == [1, 0, 0]
    assert levels(data[1]["video"]) == [2, 7]


def test_frames_in_memory_are_the_same_frames(root):
    options = {"sampler": FrameSampler(3), "is_training": True, "seed": 5}
    plain, kept = VideoFolder(root, **options), VideoFolder(root, in_memory=True, **options)
    for epoch in range(3):
        for data in (plain, kept):
            data.set_epoch(epoch)
        assert all(torch.equal(plain[i]["video"], kept[i]["video"]) for i in range(5))
    for i in range(5):
        (root / "sad" / f"{i}.mkv").unlink(missing_ok=True)
    assert kept[3]["video"].shape == (3, 3, 48, 64)


def test_chance_is_a_function_of_seed_epoch_and_index(root):
    def clips(seed, epoch):
        data = VideoFolder(root, sampler=FrameSampler(3), is_training=True, seed=seed)
        data.set_epoch(epoch)
        return torch.stack([data[i]["video"] for i in range(5)])

    assert torch.equal(clips(0, 0), clips(0, 0))
    assert not torch.equal(clips(0, 0), clips(0, 1))
    assert not torch.equal(clips(0, 0), clips(1, 0))


def test_splits_of_the_data_itself_are_used(root):
    lines = ["path,label,split", "happy/deep/0.mp4,happy,train", "sad/0.mkv,sad,train", "happy/deep/1.mp4,happy,val"]
    path = csv_file(root, *lines, "sad/1.mkv,sad,test")
    sets = {split: open_dataset(path, split, sampler=FrameSampler(1)) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 2, "val": 1, "test": 1}
    assert all(data.class_names == ("happy", "sad") for data in sets.values())
    assert open_dataset(path, sampler=FrameSampler(1)).paths == sets["test"].paths


def test_a_share_of_every_class_is_held_out_where_there_is_no_split(root):
    sets = {split: open_dataset(root, split, sampler=FrameSampler(1), val_fraction=0.4) for split in ("train", "val")}
    assert sorted(sets["train"].paths + sets["val"].paths) == sorted(VideoFolder(root, sampler=FrameSampler(1)).paths)
    assert set(sets["val"].labels) == {0, 1}
    assert set(sets["train"].labels) == {0, 1}
    with pytest.raises(InputError, match="has no test split"):
        open_dataset(root, "test", sampler=FrameSampler(1))
    with pytest.raises(InputError, match=r"val_fraction=1.5 is outside \(0, 1\)"):
        open_dataset(root, "val", sampler=FrameSampler(1), val_fraction=1.5)


@pytest.mark.parametrize(
    ("own", "split", "message"),
    [
        ("train", None, "has no test or val split"),
        ("val", "train", "has no train split"),
        (None, None, "holds no videos"),
    ],
    ids=["only train", "only val", "no lines"],
)
def test_splits_that_are_not_there_are_refused(root, own, split, message):
    lines = [] if own is None else [f"happy/deep/0.mp4,happy,{own}", f"sad/0.mkv,sad,{own}"]
    file = csv_file(root, "path,label,split", *lines)
    with pytest.raises(InputError, match=message):
        open_dataset(file, split, sampler=FrameSampler(1))


def test_folders_of_splits(root, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            for i in range(2):
                make_video(tmp_path / "splits" / split / name / f"{i}.mp4", num_frames=2)
    sets = {s: open_dataset(tmp_path / "splits", s, sampler=FrameSampler(1)) for s in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 2, "val": 2, "test": 4}
    assert all("/test/" in path for path in sets["test"].paths)


FOLDERS = {
    "missing": (lambda r: r / "none", "none: no such folder"),
    "no class folders": (lambda r: r / "happy" / "deep", "holds no class folders with videos"),
    "one class": (lambda r: r / "happy", "has the one class 'deep'; a classifier needs two or more"),
    "class without videos": (lambda r: (r / "calm").mkdir() or r, "calm holds no videos; known endings are .3g2"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders_are_refused(case, root):
    make, message = FOLDERS[case]
    with pytest.raises(InputError, match=message):
        VideoFolder(make(root), sampler=FrameSampler(1))


CSVS = {
    "no path": (["file,label", "sad/0.mkv,sad"], "has no column 'path'; it has 'file', 'label'"),
    "no label": (["path", "sad/0.mkv"], "has no column 'label'"),
    "nothing": ([""], "has no column 'path'; it has none"),
    "no lines": (["path,label"], "holds no videos"),
    "unknown class": (["path,label", "sad/0.mkv,sad", "sad/1.mkv,angry"], "has the unknown class 'angry'; known are"),
    "twice": (["path,label", "sad/0.mkv,sad", "sad/../sad/0.mkv,happy"], "line 3: .* is there already, in line 2"),
    "no such file": (["path,label", "sad/9.mkv,sad"], "line 2: sad/9.mkv: no such file"),
    "after empty lines": (["path,label", "", "", "sad/9.mkv,sad"], "line 4: sad/9.mkv: no such file"),
    "short line": (["path,label", "sad/0.mkv"], "line 2: path or label is missing"),
    "bad split": (["path,label,split", "sad/0.mkv,sad,holdout"], "line 2: split 'holdout' is none of"),
}


@pytest.mark.parametrize("case", CSVS)
def test_bad_csvs_are_refused_with_their_line(case, root):
    lines, message = CSVS[case]
    with pytest.raises(InputError, match=message) as caught:
        VideoCSV(csv_file(root, *lines), class_names=["happy", "sad"], sampler=FrameSampler(1))
    assert "\n" not in str(caught.value)


def test_other_files_are_no_csv(root):
    with pytest.raises(InputError, match=r"cannot read .*none\.csv"):
        VideoCSV(root / "none.csv", sampler=FrameSampler(1))
    with pytest.raises(InputError, match=r"is no folder and no \.csv file"):
        open_dataset(root / "sad" / "notes.txt", sampler=FrameSampler(1))
    (root / "latin.csv").write_bytes(b"path,label\nsad/0.mkv,tr\xfcbe\n")
    with pytest.raises(InputError, match=r"is no CSV file in UTF-8"):
        VideoCSV(root / "latin.csv", sampler=FrameSampler(1))


def test_unreadable_videos_are_named_or_left_out(root, caplog):
    (root / "sad" / "broken.mp4").write_text("no video")
    make_sound(root / "happy" / "sound.mp4")
    with pytest.raises(InputError, match=r"has 2 unreadable videos: .*sound\.mp4.*broken\.mp4.*on_error='skip'"):
        VideoFolder(root, sampler=FrameSampler(1))
    with caplog.at_level(logging.WARNING, logger="fe_adapter"):
        data = VideoFolder(root, sampler=FrameSampler(1), on_error="skip")
    assert len(data) == 5
    assert len(data.skipped) == len(caplog.records) == 2
    with pytest.raises(InputError, match="'ignore' is not one of"):
        VideoFolder(root, sampler=FrameSampler(1), on_error="ignore")
    clips = [Clip(str(root / "sad" / "broken.mp4"), "sad")]
    with pytest.raises(InputError, match="holds no readable videos"):
        VideoDataset(clips, class_names=["sad", "happy"], sampler=FrameSampler(1), on_error="skip")


def test_no_class_is_lost_by_skipping(root):
    for path in (root / "sad").glob("*.mkv"):
        path.write_text("no video")
    with pytest.raises(InputError, match="has no readable video of the class 'sad'"):
        VideoFolder(root, sampler=FrameSampler(1), on_error="skip")


def test_a_class_that_is_not_trained_on_is_unknown_to_validation(root):
    lines = ["path,label,split", "happy/deep/0.mp4,happy,train", "sad/0.mkv, sad ,train", "sad/1.mkv,angry,val"]
    path = csv_file(root, *lines)
    assert open_dataset(path, "train", sampler=FrameSampler(1)).class_names == ("happy", "sad")
    with pytest.raises(InputError, match="has the unknown class 'angry'; known are happy, sad"):
        open_dataset(path, "val", sampler=FrameSampler(1))


def test_the_order_of_batches(root):
    data = VideoFolder(root, sampler=FrameSampler(1))

    def order(**options):
        return [batch["index"].tolist() for batch in make_loader(data, 2, **options)]

    assert order() == [[0, 1], [2, 3], [4]]
    shuffled = order(sampler="shuffle", seed=1)
    assert sorted(i for batch in shuffled for i in batch) == list(range(5))
    assert order(sampler="shuffle", seed=1) == shuffled
    assert order(sampler="shuffle", seed=1, start_batch=1) == shuffled[1:]
    assert len({str(order(sampler="shuffle", seed=1, epoch=epoch)) for epoch in range(5)}) > 1
    state = torch.get_rng_state()
    order(sampler="shuffle")
    assert torch.equal(torch.get_rng_state(), state)


def test_balanced_batches_draw_every_class_equally_often(root):
    data = VideoFolder(root, sampler=FrameSampler(1))
    data.labels = [0] * 4 + [1]
    drawn = [i for epoch in range(100) for batch in make_loader(data, 5, sampler="balanced", epoch=epoch).batch_sampler
             for i in batch]  # fmt: skip
    share = np.mean([data.labels[i] for i in drawn])
    assert abs(share - 0.5) < 4 * 0.5 / len(drawn) ** 0.5


def test_workers_start_although_this_process_has_threads(root):
    data = VideoFolder(root, sampler=FrameSampler(2), transform=EvalTransform((16, 16)))
    alone = torch.cat([batch["video"] for batch in make_loader(data, 2)])  # PyTorch's and FFmpeg's threads run now
    torch.randn(256, 256) @ torch.randn(256, 256)
    for _ in range(2):
        loader = make_loader(data, 2, num_workers=2)
        assert torch.equal(torch.cat([batch["video"] for batch in loader]), alone)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_gone_later_is_named_in_one_line(root, num_workers):
    data = VideoFolder(root, sampler=FrameSampler(1))
    Path(data.paths[-1]).unlink()
    with pytest.raises(InputError, match=r"^[^\n]*: no such file$"):
        list(one_line_errors(make_loader(data, 2, num_workers=num_workers)))


def test_a_crop_keeps_a_share_of_what_fits_and_interpolation_is_as_asked_for():
    clip = torch.zeros(2, 3, 40, 80, dtype=torch.uint8)
    clip[..., 4:36, 24:56] = 100  # 0.8 of the square in the middle
    assert (EvalTransform((32, 32), crop=0.8)(clip) == 100).all()
    assert not (EvalTransform((32, 32), crop=0.9)(clip) == 100).all()
    noise = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = {name: EvalTransform((20, 20), name)(noise) for name in ("bilinear", "bicubic", "nearest")}
    assert set(made["nearest"].flatten().tolist()) <= set(noise.flatten().tolist())
    assert made["bicubic"].float().var() > made["bilinear"].float().var()  # it is sharper


def test_a_rectangle_is_erased_from_every_frame_and_from_nothing_that_is_kept():
    pytest.importorskip("torchvision")
    clip = torch.full((3, 3, 40, 40), 7, dtype=torch.uint8)
    transform = TrainTransform((40, 40), scale=(1, 1), ratio=(1, 1), flip=False, randaugment=False, erase=0.5)
    clips = [transform(clip, seed) for seed in range(40)]
    erased = [c for c in clips if not torch.equal(c, clip)]
    assert 8 <= len(erased) <= 32  # half of 40, four standard deviations of 3 either way
    for c in erased:
        is_grey = c == 128
        assert torch.equal(c[~is_grey], clip[~is_grey])
        assert (is_grey == is_grey[:1, :1]).all()
        rows, columns = is_grey[0, 0].any(1).sum(), is_grey[0, 0].any(0).sum()
        assert is_grey[0, 0].sum() == rows * columns
        assert 0.01 < is_grey.float().mean() < 0.4  # torchvision's 0.02 to 0.33, in whole pixels
    assert (clip == 7).all()
    assert all(torch.equal(transform(clip, seed), c) for seed, c in enumerate(clips))
