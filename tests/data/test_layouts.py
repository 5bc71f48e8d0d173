"""Published data sets by name: what their lists say, with the traps that copies of them have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fe_adapter.cli import app as cli
from fe_adapter.data import FrameSampler, open_dataset
from fe_adapter.data.layouts import LAYOUTS, Where, check_fold, find_layout, read_listing
from fe_adapter.data.layouts.mafw import CLASSES
from fe_adapter.data.layouts.names import SEVEN, canonical, find_class
from fe_adapter.data.layouts.tables import read_list
from fe_adapter.errors import InputError
from tests.published import MAKERS, make_dfew, make_ferv39k, make_frames, make_lists, make_mafw, write
from tests.videos import make_video

LAYOUT_FILES = list((Path(__file__).parents[2] / "fe_adapter/data/layouts").glob("*.py"))
BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}']
FAST = ["--num-frames", "2", "--batch-size", "8", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]


def opened(data, split=None, **options):
    return open_dataset(data, split, sampler=FrameSampler(2), **options)


def classes(dataset):
    return {
        path.rpartition("/")[2]: dataset.class_names[y] for path, y in zip(dataset.paths, dataset.labels, strict=True)
    }


@pytest.mark.parametrize("name", MAKERS)
def test_each_trains_and_is_tested_by_its_lists(tmp_path, name, capsys):
    make, fold = MAKERS[name]
    data = f"{name}:{make(tmp_path / 'data')}"
    of_fold = [] if fold is None else ["--fold", str(fold)]
    out = tmp_path / "run"
    assert cli.run(["train", data, *of_fold, *BACKBONE, *FAST, "--out", str(out)]) == 0
    content = json.loads((out / "best" / "adapter_config.json").read_text())["classifier"]
    assert tuple(content["class_names"]) == (LAYOUTS[name].class_names or ("calm", "glad"))
    assert content["clip_sampling"].get("layout") == name
    assert content["clip_sampling"].get("fold") == fold
    capsys.readouterr()
    assert cli.run(["eval", str(out), data, "--json"]) == 0  # of the fold that was left out
    expected = len(opened(data, fold=fold))
    assert json.loads(capsys.readouterr().out)["num_clips"] == expected > 1


@pytest.mark.parametrize("file", LAYOUT_FILES, ids=lambda path: path.name)
def test_each_is_a_short_file(file):
    assert len(file.read_text().splitlines()) < 120


def test_published_counts_add_up():
    for layout in LAYOUTS.values():
        for key, counts in layout.per_class.items():
            assert len(counts) == len(layout.class_names)
            assert sum(counts) == layout.totals[key]
    assert sum(LAYOUTS["dfew"].totals[k, "test"] for k in range(1, 6)) == 11697
    assert sum(LAYOUTS["mafw"].totals[k, "test"] for k in range(1, 6)) == 9172
    assert sum(LAYOUTS["ravdess"].totals[k, "test"] for k in range(1, 7)) == 1440
    assert sum(LAYOUTS["cremad"].totals[1, split] for split in ("train", "test")) == 7442


@pytest.mark.parametrize("base", [0, 1])
def test_dfew_counts_labels_from_either(tmp_path, base):
    dataset = opened(f"dfew:{make_dfew(tmp_path, base)}", fold=1)
    assert list(classes(dataset).items()) == [(f"{29 + i:05d}", name) for i, name in enumerate(SEVEN)]
    video = dataset[0]["video"]  # frames of 3, 9 of 1 to 11: by number, not as text
    assert [round(frame.float().mean().item() / 10) for frame in video] == [2, 8]


def test_dfew_in_the_form_of_another_repository(tmp_path):
    make_dfew(tmp_path, base=0)
    for split in ("train", "test"):
        source = tmp_path / f"EmoLabel_DataSplit/{split}(single-labeled)"
        shutil.move(source / "set_1.csv", tmp_path / f"EmoLabel_DataSplit/{split}_set_1.csv")
        shutil.rmtree(source)
    assert len(opened(f"dfew:{tmp_path}", fold=1)) == 7


def test_validation_is_a_share_of_training_and_never_the_test_split(tmp_path):
    data = f"dfew:{make_dfew(tmp_path)}"
    sets = {split: set(opened(data, split, fold=1, val_fraction=0.25).paths) for split in ("train", "val", "test")}
    assert [len(sets[split]) for split in ("train", "val", "test")] == [21, 7, 7]
    assert len(set.union(*sets.values())) == 35
    assert set(opened(data, "val", fold=1, select_on_test=True).paths) == sets["test"]
    assert len(opened(data, "train", fold=1, select_on_test=True)) == 28
    assert opened(data, "val", fold=1, select_on_test=True).split_name == "test"


@pytest.mark.parametrize("name", ["cremad", "ravdess"])
def test_nobody_is_in_two_splits(tmp_path, name):
    make, fold = MAKERS[name]
    data = f"{name}:{make(tmp_path)}"
    people = [{clip.subject for clip in opened(data, split, fold=fold).clips} for split in ("train", "val", "test")]
    assert all(people)
    assert not people[0] & people[1]
    assert not (people[0] | people[1]) & people[2]


def test_a_performance_is_there_once(tmp_path):
    make, _ = MAKERS["ravdess"]
    listing = read_listing(LAYOUTS["ravdess"], make(tmp_path), 1, Where())
    assert {clip.path.rpartition("/")[2][:5] for clips in listing.splits.values() for clip in clips} == {"02-01"}
    assert listing.notes == [
        "modality 02; 1 of song or sound are left out",
        "24 of the same performances are left out",
    ]
    shutil.rmtree(tmp_path / "Actor_05/02-01-01-01-01-01-05")
    clips = read_listing(LAYOUTS["ravdess"], tmp_path, 1, Where()).splits
    assert sum(map(len, clips.values())) == 24  # of that performance the one with sound
    assert next(clip.path.rpartition("/")[2] for clip in clips["train"]) == "01-01-01-01-01-01-05"


def test_ferv39k_tells_clips_by_their_whole_path(tmp_path):
    dataset = opened(f"ferv39k:{make_ferv39k(tmp_path)}", "train", select_on_test=True)
    assert len(dataset) == 28
    assert len({path.rpartition("/")[2] for path in dataset.paths}) == 1
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        assert path.split("/")[-2].lower() == SEVEN[label]


def test_ferv39k_with_commas_a_header_and_numbers_in_alphabetical_order(tmp_path):
    make_ferv39k(tmp_path)
    alphabetical = sorted(("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"))
    for split in ("train", "test"):
        file = tmp_path / f"4_setups/All_scenes/{split}_All.csv"
        rows = [line.split() for line in file.read_text().splitlines()]
        write(file, "path,id\n" + "\n".join(f"{path},{alphabetical.index(name)}" for path, name in rows))
    dataset = opened(f"ferv39k:{tmp_path}", "test")
    assert sorted(dataset.labels) == list(range(7))
    assert dataset.class_names == SEVEN

    file = (
        tmp_path / "4_setups/All_scenes/train_All.csv"
    )  # its first line is wrong, and not the others with that number
    write(file, file.read_text().replace("Argue/Happy/0267,3", "Argue/Happy/0267,4"))
    listing = read_listing(LAYOUTS["ferv39k"], tmp_path, None, Where())
    assert listing.faults == ["train, clip Argue/Happy/0267: label 4 where most with it are neutral"]


def test_mafw_reads_either_kind_of_list(tmp_path):
    data = f"mafw:{make_mafw(tmp_path)}"
    plain = opened(data, fold=1)
    captioned = opened(data, fold=1, where=Where(lists="Train & Test Set/single/with_caption"))
    assert plain.paths == captioned.paths
    assert [plain.class_names[y] for y in plain.labels] == list(CLASSES)
    (tmp_path / "Train & Test Set").rename(tmp_path / "split")
    assert opened(data, fold=1).labels == plain.labels


def test_compound_labels_are_refused_with_a_sentence(tmp_path):
    where = Where(lists="Train & Test Set/compound/no_caption")
    with pytest.raises(InputError, match="anger_disgust is a compound label, several emotions of one clip, which"):
        opened(f"mafw:{make_mafw(tmp_path)}", fold=1, where=where)


def test_lists_of_every_kind(tmp_path):
    data = f"list:{make_lists(tmp_path)}"
    assert [len(opened(data, split)) for split in ("train", "val", "test")] == [6, 2, 2]
    assert opened(data, "train").class_names == ("calm", "glad")
    for text in (
        "a b/1 0\nc/2 1\n",
        "a b/1 12 0\nc/2 9 1\n",
        "path,label\na b/1,0\nc/2,1\n",
        "\ufeffvideo_name,num_frames,labels\r\na b/1,3,0\r\nc/2,4,1",
        "a b/1\t0\nc/2\t1",
        "a b/1;0\nc/2;1",
    ):
        rows = read_list(write(tmp_path / "x.csv", text))
        assert [(name, label) for name, label, _ in rows] == [("a b/1", "0"), ("c/2", "1")]
    assert [count for _, _, count in read_list(write(tmp_path / "x.csv", "a b/1 12 0\nc/2 9 1\n"))] == [12, 9]


def test_classes_of_one_name_in_lists(tmp_path):
    root = make_lists(tmp_path)
    (root / "classes.txt").unlink()
    rows = "".join(f"clips/a person {i} {'calm' if i else 'Calm'}\n" for i in range(6))
    write(root / "train_videofolder.txt", rows)
    with pytest.raises(InputError, match="has the classes 'Calm' and 'calm', which differ"):
        opened(f"list:{root}", "train")


def test_classes_go_by_any_of_their_names():
    assert [canonical(name) for name in ("HAP", "Happiness", " anger", "Surprised", "Boredom")] == [
        "happy", "happy", "angry", "surprise", "boredom",
    ]  # fmt: skip
    assert find_class("Fear", ("calm", "fearful")) == "fearful"
    assert find_class("contempt", SEVEN) is None


def test_a_model_of_one_data_set_is_tested_on_another(tmp_path):
    names = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")  # a model's
    dataset = opened(f"dfew:{make_dfew(tmp_path)}", fold=1, class_names=names)
    assert [names[y] for y in dataset.labels] == [
        "happiness",
        "sadness",
        "neutral",
        "anger",
        "surprise",
        "disgust",
        "fear",
    ]


def test_the_test_clips_of_another_fold_were_trained_on(tmp_path, capsys):
    root = make_dfew(tmp_path / "data")
    out = tmp_path / "run"
    assert cli.run(["train", f"dfew:{root}", "--fold", "1", *BACKBONE, *FAST, "--out", str(out)]) == 0
    capsys.readouterr()
    assert cli.run(["eval", str(out), f"dfew:{root}", "--fold", "2"]) == 2
    assert "the test clips of fold 2 were in its training" in capsys.readouterr().err
    videos = tmp_path / "videos"
    for name in SEVEN:  # other data has no folds
        make_video(videos / name / "a.mp4", 4)
    assert cli.run(["eval", str(out), str(videos)]) == 0


def lines_of(root, split="train"):
    return root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_1.csv"


def shift(root):
    rows = [line.split(",") for line in lines_of(root).read_text().splitlines()[1:]]
    write(lines_of(root), "video_name,label\n" + "\n".join(f"{name},{int(label) - 1}" for name, label in rows))


def remove(*names):
    def spoil(root):
        for name in names:
            shutil.rmtree(root / "Clip/clip_224x224_16f" / name)

    return spoil


def append(line):
    return lambda root: write(lines_of(root), f"{lines_of(root).read_text()}{line}\n")


FAULTS = {
    "labels shifted": (shift, "labels count those of train from 0 and those of test from 1"),
    "label out of range": (append("1,8"), "clip 00001: label 8 is outside 1 to 7"),
    "absent clips": (remove("00002", "00030"), "name 2 clips that are not there: 00002, 00030"),
    "empty list": (lambda root: write(lines_of(root), ""), "set_1.csv is empty"),
    "no list": (lambda root: lines_of(root).unlink(), r"has none of train\(single-labeled\)/set_1.csv"),
    "no clips": (lambda root: shutil.rmtree(root / "Clip"), "has none of the folders Clip/clip_224x224,"),
    "a leaked clip": (append("29,1"), "Clip/clip_224x224_16f/00029: in train and in test"),
    "two classes": (append("1,2"), "clip_224x224_16f/00001 is listed as happy and as sad"),
    "half a line": (lambda root: write(lines_of(root), "video_name,label\n1\n"), "line 2: '1' is no name and label"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_named(tmp_path, case):
    spoil, message = FAULTS[case]
    spoil(make_dfew(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        opened(f"dfew:{tmp_path}", fold=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "other"), [(a, b) for a in MAKERS for b in MAKERS if a != b and "list" not in (a, b)])
def test_the_root_of_another_data_set_is_recognised(tmp_path, name, other):
    if name == "dfew":  # without clips, the quickest one to make
        make_frames(tmp_path / "Clip")
    else:
        MAKERS[name][0](tmp_path)
    with pytest.raises(InputError, match=f"it looks like {LAYOUTS[name].title}: {name}:"):
        opened(f"{other}:{tmp_path}", fold=1 if LAYOUTS[other].num_folds else None)


def test_folds_and_names_are_checked(tmp_path):
    with pytest.raises(InputError, match="no fold is given, and DFEW has 5; --fold takes 1 to 5"):
        check_fold(LAYOUTS["dfew"], None)
    with pytest.raises(InputError, match="fold=6, and DFEW has 5"):
        check_fold(LAYOUTS["dfew"], 6)
    with pytest.raises(InputError, match="FERV39k has one official split and no folds"):
        check_fold(LAYOUTS["ferv39k"], 1)
    with pytest.raises(InputError, match="no data set 'dfwe'; known are dfew, ferv39k"):
        find_layout("dfwe:data")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        opened("dfew:nowhere", fold=1)
    assert find_layout("videos") is None
    assert find_layout("C:\\videos") is None
    with pytest.raises(InputError, match=r"--fold: .* is no published data set"):
        opened(make_lists(tmp_path), fold=1)
