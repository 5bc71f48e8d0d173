"""Which videos there are: splits by any of their names, files that are not ours, CSV files of spreadsheets."""

from __future__ import annotations

import pytest

from fe_adapter.data.listing import FOREIGN, SPLIT_COLUMNS, SPLIT_NAMES, clips_by_split, list_folder
from fe_adapter.data.recipe import ClipRecipe, summary_of
from fe_adapter.errors import InputError
from tests.videos import make_video


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def found(data):
    """Names of classes and files by split."""
    return {
        split: sorted((clip.class_name, clip.path.rpartition("/")[2]) for clip in clips)
        for split, clips in clips_by_split(data).items()
    }


def classes(root, split):
    return make(root, f"{split}/happy/a.mp4", f"{split}/sad/b.mp4")


@pytest.mark.parametrize("name", [*SPLIT_NAMES, *map(str.capitalize, SPLIT_NAMES), "TEST", "VALIDATION"])
def test_a_split_goes_by_any_of_its_names(tmp_path, name):
    split = SPLIT_NAMES[name.lower()]
    classes(tmp_path, "Training" if split != "train" else "Dev")
    classes(tmp_path, name)
    expected = [("happy", "a.mp4"), ("sad", "b.mp4")]
    assert found(tmp_path) == {split: expected, "train" if split != "train" else "val": expected}


def test_classes_that_look_like_splits_are_said_once(tmp_path, caplog):
    for name in ("part1", "part2"):
        classes(tmp_path, name)
    for _ in range(2):
        clips_by_split(tmp_path)
    assert caplog.text.count("the classes part1, part2 hold folders of the same names") == 1


@pytest.mark.parametrize(
    "paths", [("train/happy/a.mp4", "train/stray.mp4", "test/happy/b.mp4"), ("train/a.mp4", "test/b.mp4")]
)
def test_splits_that_hold_videos_themselves_are_no_classes(tmp_path, paths):
    make(tmp_path, *paths)
    with pytest.raises(InputError, match=r"has the splits test, train, but '(test|train)' holds no class folders, or"):
        clips_by_split(tmp_path)


def test_data_to_test_on_needs_no_training_split(tmp_path):
    assert set(found(classes(tmp_path, "Testing"))) == {"test"}


def test_classes_with_the_names_of_splits_are_classes(tmp_path):
    assert set(found(make(tmp_path, "train/a.mp4", "bus/b.mp4"))) == {None}
    assert set(found(make(tmp_path / "other", "dev/a/a.mp4", "bus/b.mp4"))) == {None}


def test_what_might_be_a_split_or_a_class_is_refused(tmp_path):
    make(classes(tmp_path, "train"), "bus/c.mp4")
    with pytest.raises(InputError, match="has the splits train and, beside them, videos in 'bus'"):
        clips_by_split(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path):
    for name in ("train", "val", "dev"):
        classes(tmp_path, name)
    with pytest.raises(InputError, match="two folders for one split, 'dev' and 'val'"):
        clips_by_split(tmp_path)


@pytest.mark.parametrize("depth", ["", "happy/", "happy/deep/"])
@pytest.mark.parametrize("name", [".Trash", ".ipynb_checkpoints", *sorted(FOREIGN)])
def test_hidden_and_foreign_folders_are_left_out_at_every_depth(tmp_path, depth, name):
    make(tmp_path, "happy/a.mp4", "happy/deep/c.mp4", "sad/b.mp4", f"{depth}{name}/x.mp4")
    assert [clip.path.rpartition("/")[2] for clip in list_folder(tmp_path)] == ["a.mp4", "c.mp4", "b.mp4"]


def test_hidden_files_are_left_out_at_every_depth(tmp_path):
    make(tmp_path, "happy/a.mp4", "happy/._a.mp4", "happy/deep/.b.mp4", "sad/b.mp4", "sad/._b.mp4", "sad/~$b.mp4")
    assert [clip.path.rpartition("/")[2] for clip in list_folder(tmp_path)] == ["a.mp4", "b.mp4"]


CSV = {
    "as it is": "path,label\nhappy/a.mp4,happy\nsad/b.mp4,sad\n",
    "a byte order mark": "\ufeffpath,label\nhappy/a.mp4,happy\nsad/b.mp4,sad\n",
    "another case": "Path,LABEL\nhappy/a.mp4,happy\nsad/b.mp4,sad\n",
    "blanks": "path , label\n happy/a.mp4 , happy \nsad/b.mp4,\tsad\n",
    "semicolons": "path;label\nhappy/a.mp4;happy\nsad/b.mp4;sad\n",
    "tabs": "path\tlabel\nhappy/a.mp4\thappy\nsad/b.mp4\tsad\n",
    "empty lines at the end": "path,label,,\nhappy/a.mp4,happy,,\nsad/b.mp4,sad,,\n,,,\n,,,\n",
    "empty lines before and between": "\n\npath,label\nhappy/a.mp4,happy\n\nsad/b.mp4,sad",
    "Windows": "path,label\r\nhappy/a.mp4,happy\r\nsad/b.mp4,sad\r\n",
    "Macintosh": "path,label\rhappy/a.mp4,happy\rsad/b.mp4,sad\r",
    "bars": "\n\npath|label\nhappy/a.mp4|happy\nsad/b.mp4|sad\n",
    "sep": "sep=;\npath;label\nhappy/a.mp4;happy\nsad/b.mp4;sad\n",
    "sep, quoted": '\ufeff"sep=,"\r\npath,label\r\nhappy/a.mp4,happy\r\nsad/b.mp4,sad\r\n',
    "sep, tabs": "SEP=\t\npath\tlabel\nhappy/a.mp4\thappy\nsad/b.mp4\tsad\n",
    "index": ",path,label\n0,happy/a.mp4,happy\n1,sad/b.mp4,sad\n",
    "another column": "path,label,mode\nhappy/a.mp4,happy,test\nsad/b.mp4,sad,test\n",
    "backslashes": "path,label\nhappy\\a.mp4,happy\n.\\sad\\b.mp4,sad\n",
    "quoted": '"path","label"\n"happy/a.mp4", "happy"\n"sad/b.mp4","sad"\n',
}


@pytest.mark.parametrize("kind", CSV)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_a_csv_from_a_spreadsheet_is_the_same_data(tmp_path, kind, encoding):
    make(tmp_path, "happy/a.mp4", "sad/b.mp4")
    text = CSV[kind] if encoding == "utf-8" else CSV[kind].removeprefix("\ufeff")
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # the codec without -be writes its own
    (tmp_path / "list.csv").write_bytes((mark + text).encode(encoding))
    assert found(tmp_path / "list.csv") == {None: [("happy", "a.mp4"), ("sad", "b.mp4")]}


@pytest.mark.parametrize("column", ["Split", *sorted(SPLIT_COLUMNS), "FOLD", "phase", "data split"])
def test_a_csv_knows_splits_by_any_of_their_names(tmp_path, column):
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text(f"path,label,{column}\na.mp4,happy,Training\nb.mp4,sad,dev\n")
    assert found(tmp_path / "list.csv") == {"train": [("happy", "a.mp4")], "val": [("sad", "b.mp4")]}


def test_a_column_beside_that_of_splits_is_said_to_have_no_part(tmp_path, caplog):
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text("path,label,fold,set,split\na.mp4,x,1,train,train\nb.mp4,y,2,val,dev\n")
    for _ in range(2):
        assert set(found(tmp_path / "list.csv")) == {"train", "val"}
    assert caplog.text.count("the column 'fold' is not used; splits are those of 'split'") == 1


@pytest.mark.parametrize("names", [("Happy", "happy"), ("very sad", "very  sad"), ("1", "01"), ("1", "1.0"),
                                   ("caf\u00e9", "cafe\u0301"), ("STRASSE", "stra\u00dfe"),
                                   ("sad", "sad\u200b")])  # fmt: skip
def test_two_spellings_of_a_class_are_refused(tmp_path, names):
    make(tmp_path, *(f"{name}/{i}.mp4" for i, name in enumerate(names)))
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{name}/{i}.mp4,{name}\n" for i, name in enumerate(names)), encoding="utf-8"
    )
    for data in (tmp_path, tmp_path / "list.csv"):
        with pytest.raises(
            InputError, match="which differ in case, blanks, zeros or what cannot be seen only; give"
        ) as caught:
            clips_by_split(data)
        assert str(data) in str(caught.value)


def test_names_that_differ_are_classes(tmp_path):
    names = ["1", "10", "100", "a", "a b", "ab", "0", "a.0"]
    make(tmp_path, *(f"{name}/x.mp4" for name in names))
    assert {clip.class_name for clip in list_folder(tmp_path)} == set(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,nan\n", "line 2: path or label is missing"),
        ("path,label\na.mp4,NULL\n", "line 2: path or label is missing"),
        ("path,label\na.mp4\n", "line 2: path or label is missing"),
        ("label,path\nhappy\n", "line 2: path or label is missing"),
        ("path,label,label\na.mp4,x,y\n", "has more than one column 'label'"),
        ("path,label\nmany,commas.mp4,happy\n", "line 2: 3 values for 2 columns; quote a value that holds ','"),
        ("path,label,split\na.mp4,happy,train2\n", "line 2: split 'train2' is none of train, training, val"),
        ("path,label,fold\na.mp4,happy,1\n", "has a column 'fold' that names no splits; .* says a column 'split'"),
        ("path,label,set\na.mp4,happy,easy\n", "has a column 'set' that names no splits"),
        ("path,label,set,split\na.mp4,happy,val,train\n", "the columns 'split' and 'set', which name other splits"),
        (
            "path,label,fold,set\na.mp4,x,val,train\nb.mp4,y,train,val\n",
            "the columns 'fold' and 'set', which name other splits",
        ),
        ("path,label,split1,split2\na.mp4,happy,train,val\nb.mp4,sad,val,train\n", "'split1' and 'split2', which name"),
        ("path,label,kfold\na.mp4,happy,0\n", "has a column 'kfold' that names no splits"),
        ("path,label,Usage\na.mp4,happy,Training\nb.mp4,sad,PublicTest\n", "a column 'usage' that names no splits"),
        ("path,label,split,split\na.mp4,happy,val,train\n", "more than one column 'split'"),
        ("sep=x\npath,label\na.mp4,happy\n", "line 2: 2 values for 1 columns"),
    ],
)
def test_what_a_csv_cannot_mean_is_refused_with_its_line(tmp_path, text, message):
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        clips_by_split(tmp_path / "list.csv")


def test_a_csv_that_is_not_there_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        clips_by_split(tmp_path / "none.csv")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "happy/a.mp4", "sad/b.mp4")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return []

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(InputError, match=r"cannot read the folder .*happy: Permission denied"):
        list_folder(tmp_path)


def test_the_summary_says_where_the_clips_to_validate_on_come_from(tmp_path):
    pytest.importorskip("av")
    for name in ("Train/a/1", "Train/b/2", "Train/a/3", "Train/b/4", "Dev/a/5", "Dev/b/6"):
        make_video(tmp_path / "split" / f"{name}.mp4", num_frames=2)
        make_video(tmp_path / "plain" / name[-3] / f"{name[-1]}.mp4", num_frames=2)
    said = []
    for root in ("split", "plain"):
        train_set, val_set = (ClipRecipe(2).open(tmp_path / root, split) for split in ("train", "val"))
        said.append(summary_of(train_set, val_set))
    assert said == [
        "4 clips to train on, 2 to validate (the data's 'Dev'), 2 classes",
        "4 clips to train on, 2 to validate (0.2 of every class, held out), 2 classes",
    ]
