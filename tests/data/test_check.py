"""What `data check` says of copies of data sets with faults planted in them."""

from __future__ import annotations

import json
import shutil

import openpyxl
import pytest

from fe_adapter.cli import app as cli
from fe_adapter.data.check import check_data
from fe_adapter.data.layouts import LAYOUTS
from fe_adapter.errors import InputError
from tests.published import MAKERS, make_dfew, make_frames, make_lists, make_ravdess, write
from tests.videos import make_video

CLIPS = "Clip/clip_224x224_16f"


def lines_of(root, split):
    return root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_1.csv"


def found(root, name="dfew", **options):
    report = check_data(f"{name}:{root}", fold=1 if LAYOUTS[name].num_folds else None, is_subset=True, **options)
    return {(finding.kind, finding.message): finding.names for finding in report.findings}


@pytest.mark.parametrize("name", MAKERS)
def test_a_whole_copy_is_clean(tmp_path, name, capsys):
    make, fold = MAKERS[name]
    data = f"{name}:{make(tmp_path / 'data')}"
    of_fold = [] if fold is None else ["--fold", str(fold)]
    arguments = ["data", "check", data, *of_fold, "--subset", "--json", "--content", "--out", str(tmp_path / "out")]
    code = cli.run(arguments)
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "check.json", "contact_sheet.png", "histograms.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "out/check.json").read_text()) == report
    assert sum(n for splits in report["counts"].values() for by in splits.values() for n in by.values()) > 8


def add_label(root):
    file = lines_of(root, "train")
    write(file, file.read_text() + "1,9\n")


def shift(root):
    file = lines_of(root, "test")
    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    write(file, "video_name,label\n" + "\n".join(f"{clip},{int(label) - 1}" for clip, label in rows))


def leak(root):
    file = lines_of(root, "test")
    write(file, file.read_text() + "1,1\n")


def copied(root):
    shutil.rmtree(root / CLIPS / "00029")
    shutil.copytree(root / CLIPS / "00001", root / CLIPS / "00029")


def stray(root):
    make_frames(root / CLIPS / "00003", [0] * 12, size=(48, 96), names="9{:03d}.jpg")


def cut_off(root):
    frame = root / CLIPS / "00005/9.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])


def relabel(root):
    file = lines_of(root, "train")
    write(file, file.read_text().replace("\n9,2", "\n9,3"))


def unvoted(root):
    file = root / "Annotation" / "annotation.xlsx"
    book = openpyxl.load_workbook(file)
    book.active.delete_rows(2)
    book.save(file)


FAULTS = {
    "a swapped label base": (shift, "list", "labels count those of train from 1 and those of test from 0"),
    "a label out of range": (add_label, "list", "train, clip 00001: label 9 is outside 1 to 7 of fold 1"),
    "a missing folder": (
        lambda r: shutil.rmtree(r / CLIPS / "00007"),
        "absent",
        "1 clips of fold 1 are listed and not",
    ),
    "a leaked clip": (leak, "leak", "1 clips are in train and in test of fold 1"),
    "the same content": (copied, "content", "1 clips are the same under two names in two splits of fold 1"),
    "an empty folder": (lambda r: [f.unlink() for f in (r / CLIPS / "00004").iterdir()], "unreadable", "1 clips are"),
    "a damaged frame": (lambda r: write(r / CLIPS / "00005/1.jpg", "x"), "unreadable", "1 clips cannot be read"),
    "a frame cut off": (cut_off, "unreadable", "1 clips cannot be read"),
    "a label that votes belie": (relabel, "votes", "1 clips are listed as another class than most people saw"),
    "a clip without votes": (unvoted, "votes", "1 clips have no votes of people"),
    "frames of two shapes": (stray, "size", "1 folders hold frames of different shapes"),
    "no lists": (lambda r: lines_of(r, "train").unlink(), "list", "has none of train"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_planted_faults_are_found_and_named(tmp_path, case):
    spoil, kind, message = FAULTS[case]
    spoil(make_dfew(tmp_path))
    findings = found(tmp_path, content=True)
    assert [text for own, text in findings if own == kind and message in text], findings


def test_every_absent_clip_is_named(tmp_path):
    make_dfew(tmp_path)
    shutil.rmtree(tmp_path / CLIPS)
    make_frames(tmp_path / CLIPS / "00035")
    assert found(tmp_path)["absent", "34 clips of fold 1 are listed and not there"] == tuple(
        f"{i:05d}" for i in range(1, 35)
    )


def test_counts_that_lie(tmp_path):
    root = make_lists(tmp_path)
    file = root / "train_videofolder.txt"
    write(file, file.read_text().replace("person 3 6", "person 3 16"))
    (names,) = found(root, "list").values()
    assert names == (f"{root}/clips/a person 3: 6, not 16",)


def test_published_counts_are_compared_unless_it_is_a_part(tmp_path):
    root = make_dfew(tmp_path)
    findings = {finding.message for finding in check_data(f"dfew:{root}", fold=1).findings}
    assert "train of fold 1 has 28 clips, where DFEW has 9,356" in findings
    assert "test of fold 1 has 1 disgust clips, published are 29" in findings
    assert len(findings) == 2 * (1 + 7)


def test_folds_that_overlap(tmp_path):
    root = make_dfew(tmp_path)
    for split in ("train", "test"):
        shutil.copy(lines_of(root, split), lines_of(root, split).with_name("set_2.csv"))
        lines_of(root, split).with_name("set_3.csv").unlink()
    findings = {finding.message for finding in check_data(f"dfew:{root}", is_subset=True).findings}
    assert "7 test clips of fold 2 are test clips of fold 1" in findings
    assert any("has none of train(single-labeled)/set_3.csv" in message for message in findings)


def test_a_clip_of_two_classes(tmp_path):
    root = make_dfew(tmp_path)
    file = lines_of(root, "train").with_name("set_2.csv")
    write(file, file.read_text().replace("\n8,1", "\n8,2"))  # in fold 1 it is happy
    (finding,) = (f for f in check_data(f"dfew:{root}", is_subset=True).findings if f.kind == "class")
    assert finding.message == "1 clips are listed as more than one class"
    assert finding.names == (f"{root / CLIPS / '00008'}: happy and sad",)


def test_somebody_in_two_splits(tmp_path):
    root = make_ravdess(tmp_path)
    other = root / "Actor_05/02-01-01-01-01-01-01"  # of actor 1, in another one's folder: known by the name
    make_frames(other)
    assert found(root, "ravdess") == {}
    write(root / "Actor_05/readme.mp4", "x")
    assert ("list", "Actor_05/readme.mp4 is no name such as 02-01-06-01-02-01-12 of fold 1") in found(root, "ravdess")


def test_own_folders_and_csv_files(tmp_path, capsys):
    for split in ("train", "test"):
        for i, name in enumerate(("happy", "sad")):
            make_video(tmp_path / "videos" / split / name / "a.mp4", 6 + i)
    out = ["--out", str(tmp_path / "out")]
    assert cli.run(["data", "check", str(tmp_path / "videos"), *out]) == 0
    text = capsys.readouterr()
    assert "happy" in text.out
    assert "4 clips have fewer than 16 frames" in text.err
    shutil.rmtree(tmp_path / "videos/test/sad")
    (tmp_path / "videos/train/sad/a.mp4").write_bytes(b"")
    assert cli.run(["data", "check", str(tmp_path / "videos"), *out, "--content"]) == 1
    text = capsys.readouterr().err
    assert "class: split test has no clips of sad" in text
    assert "unreadable: 1 clips are empty" in text
    assert "content: 1 clips are the same under two names in two splits" in text
    table = write(tmp_path / "list.csv", "path,label\nvideos/test/happy/a.mp4,happy\nvideos/nowhere.mp4,sad\n")
    assert cli.run(["data", "check", str(table), *out]) == 1
    assert "list.csv, line 3: videos/nowhere.mp4: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("dfew:nowhere", "nowhere: no such folder"),
        ("dfwe:x", "no data set 'dfwe'"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, data, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        check_data(data)
    assert cli.run(["data", "check", data]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
