"""Ranges marked in videos: every format, the clips cut from them, and what is refused."""

from __future__ import annotations

import json

import pytest

from fe_adapter.cli import app as cli
from fe_adapter.data import ClipRecipe, FrameSampler, open_dataset
from fe_adapter.data.annotations import Cutting, cut, is_annotation, read_ranges
from fe_adapter.errors import InputError
from tests.published import make_frames, write
from tests.videos import levels, make_video

pytest.importorskip("pysubs2")
Elan = pytest.importorskip("pympi.Elan")

BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 3, "num_heads": 2}']
FAST = ["--num-frames", "2", "--batch-size", "4", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]
MARKS = ((0.5, 2.5, "calm"), (3.5, 5.0, "glad"), (6.0, 7.5, "calm"), (7.5, 9.0, "glad"))
FPS = 3


@pytest.fixture
def video(tmp_path):
    """Ten seconds at three frames a second, each of a grey of its own."""
    return make_video(tmp_path / "a b.mp4", 30, fps=FPS)


def srt(path, marks=MARKS):
    def time(t):
        return f"00:00:{int(t):02d},{round(t % 1 * 1000):03d}"

    cues = [f"{i}\r\n{time(a)} --> {time(b)}\r\n<i>{name}</i>\r\n" for i, (a, b, name) in enumerate(marks, 1)]
    return write(path, "\ufeff" + "\r\n".join(cues))


def vtt(path):
    cues = [f"00:{a:06.3f} --> 00:{b:06.3f} align:start\n{name}\n" for a, b, name in MARKS]
    return write(path, "WEBVTT\n\nNOTE by hand\n\n" + "\n".join(cues))


def table(path):
    def minutes(t):
        return f"0:{t:05.2f}"

    rows = [f'"a b.mp4",{a},{minutes(b)},{name}' for a, b, name in MARKS]
    return write(path, "\n".join(["path,start,end,label", *rows]))


def eaf(path, tiers=("emotion",), linked="a b.mp4"):
    content = Elan.Eaf()
    content.remove_tier("default")
    for tier in tiers:
        content.add_tier(tier)
        for a, b, name in MARKS:
            content.add_annotation(tier, round(a * 1000), round(b * 1000), name)
    if linked:
        content.add_linked_file(f"file:///elsewhere/{linked}", relpath=f"./{linked.replace(' ', '%20')}")
    content.to_file(str(path))
    return path


MAKERS = {"a b.srt": srt, "a b.vtt": vtt, "marks.csv": table, "marks.eaf": eaf}


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_says_the_same(tmp_path, video, name):
    path = MAKERS[name](tmp_path / name)
    assert is_annotation(path)
    ranges = read_ranges(path)
    assert [(r.start, r.end, r.label) for r in ranges] == [pytest.approx(mark) for mark in MARKS]
    assert {r.video for r in ranges} == {str(video)}


def test_a_folder_of_marks_is_one_data_set(tmp_path, video):
    srt(tmp_path / "a b.srt")
    make_frames(tmp_path / "other", [0] * 250)
    srt(tmp_path / "other.srt")
    assert is_annotation(tmp_path)
    assert {r.video for r in read_ranges(tmp_path)} == {str(video), str(tmp_path / "other")}


def test_other_files_are_no_annotations(tmp_path, video):
    assert not is_annotation(write(tmp_path / "list.csv", "path,label\na b.mp4,calm\n"))
    (tmp_path / "videos").mkdir()
    assert not is_annotation(tmp_path / "videos")


def test_of_several_tiers_one_is_named(tmp_path, video):
    path = eaf(tmp_path / "marks.eaf", tiers=("emotion", "speech"))
    with pytest.raises(InputError, match="has the tiers emotion, speech; --tier names the one to learn"):
        read_ranges(path)
    assert len(read_ranges(path, "speech")) == len(MARKS)
    check = ["data", "check", str(path), "--out", str(tmp_path / "check")]
    assert cli.run(check) == 1
    assert cli.run([*check, "--tier", "emotion", "--window", "0.4"]) == 0
    with pytest.raises(InputError, match="has no tier 'x'; those with marks are emotion, speech"):
        read_ranges(path, "x")
    assert read_ranges(eaf(tmp_path / "a b.eaf", linked=None))[0].video == str(video)  # the one of its name


def test_clips_are_cut_from_ranges_and_nothing_else(tmp_path, video):
    by_split = cut(srt(tmp_path / "a b.srt"), Cutting(window=0.4), 0.5, seed=0)
    for clips in by_split.values():
        for clip in clips:
            assert any(
                a <= clip.window[0] and clip.window[1] <= b + 1e-9 and name == clip.class_name for a, b, name in MARKS
            )
            assert 0.2 - 1e-9 <= clip.window[1] - clip.window[0] <= 0.4 + 1e-9  # half of one, where a range was cut
    dataset = open_dataset(tmp_path / "a b.srt", "val", sampler=FrameSampler(2), val_fraction=0.5,
                           cutting=Cutting(window=0.4))  # fmt: skip
    assert dataset.clip_seconds == pytest.approx(0.4)  # the median
    for item, clip in zip(dataset, dataset.clips, strict=True):
        seen = [frame / FPS for frame in levels(item["video"])]
        assert all(clip.window[0] - 1 / FPS < t < clip.window[1] for t in seen)
        assert item["path"] == f"{video}#t={clip.window[0]:.2f},{clip.window[1]:.2f}"


@pytest.mark.parametrize("window", [0.3, 0.5])
@pytest.mark.parametrize("fraction", [0.2, 0.5])
@pytest.mark.parametrize("background", [None, "rest"])
def test_training_keeps_a_clip_s_distance_from_validation(tmp_path, video, window, fraction, background):
    cutting = Cutting(window=window, background=background)
    clips = cut(srt(tmp_path / "a b.srt"), cutting, fraction, seed=0)
    expected = {"calm", "glad"} | ({background} if background else set())
    assert {clip.class_name for clip in clips["train"]} == {clip.class_name for clip in clips["val"]} == expected
    for a in clips["train"]:
        for b in clips["val"]:
            assert a.window[1] <= b.window[0] - window + 1e-6 or a.window[0] >= b.window[1] + window - 1e-6


def test_background_is_what_lies_between(tmp_path, video):
    clips = cut(srt(tmp_path / "a b.srt"), Cutting(window=0.3, background="rest"), 0.5, seed=0)
    rest = [clip.window for part in clips.values() for clip in part if clip.class_name == "rest"]
    assert rest
    for a, b in rest:
        assert all(b <= start + 1e-9 or a >= end - 1e-9 for start, end, _ in MARKS)
    with pytest.raises(InputError, match="--background calm: there are marks of that name"):
        cut(tmp_path / "a b.srt", Cutting(window=0.3, background="calm"), 0.5, seed=0)


def test_whole_videos_can_be_held_out(tmp_path):
    for name in "abcd":
        make_video(tmp_path / f"{name}.mp4", 30, fps=FPS)
        srt(tmp_path / f"{name}.srt")
    clips = cut(tmp_path, Cutting(window=0.4, split_by="video"), 0.25, seed=0)
    videos = {split: {clip.path for clip in found} for split, found in clips.items()}
    assert (len(videos["train"]), len(videos["val"])) == (3, 1)
    assert not videos["train"] & videos["val"]
    (tmp_path / "one").mkdir()
    make_video(tmp_path / "one" / "a.mp4", 30, fps=FPS)
    with pytest.raises(InputError, match="is of one video, which --split-by video cannot split"):
        cut(srt(tmp_path / "one" / "a.srt"), Cutting(window=0.4, split_by="video"), 0.25, seed=0)


def test_splits_of_the_annotation_itself_are_used(tmp_path, video):
    rows = [f"a b.mp4,{a},{b},{name},{'Train' if a < 6 else 'dev'}" for a, b, name in MARKS]
    path = write(tmp_path / "marks.csv", "\n".join(["path,start,end,label,split", *rows]))
    clips = cut(path, Cutting(window=0.5), 0.2, seed=0)
    assert max(clip.window[1] for clip in clips["train"]) <= 5 < 6 <= min(clip.window[0] for clip in clips["val"])


def of_csv(*rows):
    return lambda folder: write(folder / "marks.csv", "\n".join(["path,start,end,label", *rows]))


BAD = {
    "overlap": (of_csv("a b.mp4,0,2,calm", "a b.mp4,1,3,glad"), "line 3: 'glad' from 1 s overlaps 'calm' until 2 s"),
    "backwards": (of_csv("a b.mp4,2,1,calm"), "line 2: 'calm' ends at 1 s and begins at 2 s"),
    "empty": (of_csv("a b.mp4,2,2,calm"), "line 2: 'calm' ends at 2 s and begins at 2 s"),
    "beyond": (of_csv("a b.mp4,0,19,calm"), "line 2: ends at 19 s, beyond .*, which ends at 10.00 s"),
    "no label": (of_csv("a b.mp4,0,1,"), "line 2: the label is missing"),
    "no time": (of_csv("a b.mp4,x,1,calm"), "line 2: 'x' is no time such as 83.5"),
    "75 seconds": (of_csv("a b.mp4,0,0:75,calm"), "line 2: '0:75' is no time"),
    "60 minutes": (of_csv("a b.mp4,0,0:60:00,calm"), "line 2: '0:60:00' is no time"),
    "one class twice": (of_csv("a b.mp4,0,4,calm", "a b.mp4,4,8,Calm"), "classes 'calm' and 'Calm', which differ"),
    "minus": (of_csv("a b.mp4,-1,1,calm"), "line 2: '-1' is no time"),
    "no video": (of_csv("b.mp4,0,1,calm"), "line 2: b.mp4: no such file"),
    "too little": (of_csv("a b.mp4,0,0.5,calm", "a b.mp4,3,5,glad"), "0.5 s are marked 'calm', too little for clips"),
    "nothing": (of_csv(), "marks nothing"),
    "no subtitles": (lambda f: write(f / "a b.srt", "hello\n"), "marks nothing"),
    "no vtt": (lambda f: write(f / "a b.vtt", ""), "a b.vtt (is no subtitle file|marks nothing)"),
    "bad times": (
        lambda f: write(f / "a b.srt", "1\n00:00:00,000 --> 00:00:01,000\ncalm\n\n2\n00:00:x --> 1\nglad\n"),
        "mark 1: times that cannot be read",
    ),
    "no such video": (lambda f: srt(f / "c.srt"), "there is no video c.mp4 or the like beside it"),
    "no elan": (lambda f: write(f / "a b.eaf", "<x>"), "is no ELAN file"),
    "other xml": (lambda f: write(f / "a b.eaf", "<x/>"), "is no ELAN file|marks nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_marks_are_refused_by_name(tmp_path, video, case, capsys):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        cut(path, Cutting(), 0.2, seed=0)
    assert "\n" not in str(caught.value)
    out = tmp_path / "out"
    assert cli.run(["train", str(path), *BACKBONE, *FAST, "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not out.exists()


def test_from_marks_to_a_timeline(tmp_path, video, capsys, caplog):
    path, run = srt(tmp_path / "a b.srt"), tmp_path / "run"
    cache = ["--last-blocks", "1", "--cache-features", str(tmp_path / "cache"), "--in-memory"]
    options = ["--window", "0.4", "--val-fraction", "0.3", "--background", "rest"]
    assert cli.run(["train", str(path), *BACKBONE, *FAST, *options, *cache, "--out", str(run)]) == 0
    assert "0.3 of what is marked of every class, its last, held out" in capsys.readouterr().err
    content = json.loads((run / "best/adapter_config.json").read_text())["classifier"]
    assert content["clip_seconds"] == pytest.approx(0.4)  # the median: most are whole
    assert content["clip_sampling"]["background"] == "rest"
    assert cli.run(["eval", str(run), str(path), "--json"]) == 0  # of the part that was held out, cut alike
    clips = cut(path, Cutting(0.4, "rest"), 0.3, seed=0)["val"]
    assert json.loads(capsys.readouterr().out)["num_clips"] == len(clips)
    assert "marks are not those of training" not in caplog.text
    marks = path.read_text()
    path.write_text(marks.replace("00:00:00,500", "00:00:00,600", 1))
    assert cli.run(["eval", str(run), str(path), "--json"]) == 0
    assert "the marks are not those of training" in caplog.text
    path.write_text(marks)
    capsys.readouterr()
    assert cli.run(["predict", str(run), str(video), "--out", str(tmp_path / "p"), "--json"]) == 0
    (prediction,) = json.loads(capsys.readouterr().out)
    assert len(prediction["windows"]) == 49
    assert (tmp_path / "p" / "a b.png").exists()
    assert cli.run(["data", "check", str(path), "--out", str(tmp_path / "check")]) == 0


def test_a_model_of_other_classes_knows_no_such_label(tmp_path, video):
    srt(tmp_path / "a b.srt")
    with pytest.raises(InputError, match="has the unknown class 'calm'; known are glad, sad"):
        open_dataset(tmp_path / "a b.srt", "val", sampler=FrameSampler(2), class_names=("glad", "sad"),
                     cutting=Cutting(window=0.4))  # fmt: skip


def test_bad_settings_are_refused():
    for options, message in (
        ({"window": 0.0}, "window=0.0 is no positive number"),
        ({"split_by": "x"}, "split_by='x' is not one of"),
        ({"background": ""}, "background='' is no name of a class"),
    ):
        with pytest.raises(InputError, match=message):
            ClipRecipe(**options)


def test_how_marks_are_cut_is_refused_where_nothing_is_marked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    for kind in ("a", "b"):
        make_frames(folder / kind / "1", range(0, 160, 10))
    for options in (["--window", "0.5"], ["--background", "rest", "--tier", "x"]):
        assert cli.run(["data", "check", str(folder), *options]) in (1, 2)
        assert f"{options[0]}" in (said := "".join(capsys.readouterr())), said
        assert "no ranges are marked, of which that is" in said
    assert cli.run(["data", "check", str(folder)]) == 0
