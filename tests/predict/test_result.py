"""Results under names that others know: records, tables, smoothing, people."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from fe_adapter.data.faces import Face
from fe_adapter.errors import InputError
from fe_adapter.predict import Prediction
from fe_adapter.predict.config import PredictConfig
from fe_adapter.predict.tables import COLUMNS, GrowingTable, class_columns, in_style, write_table

NAMES = ("happy", "sad", "frame")
NAN = float("nan")


def people(unsure_below=None):
    """Face 0 in windows 0 to 2, face 3 in window 1, and in window 3 nobody."""
    one = [Face(0, (10.0 + i, 20.0, 30.5, 40.0), 0.9) for i in range(3)]
    other = Face(3, (50.0, 20.0, 30.0, 40.0), 0.8)
    windows = ((0.0, 1.0), (0.5, 1.5), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5))
    rows = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.5, 0.1], [NAN, NAN, NAN]]
    return Prediction(
        "some/clip.mp4", NAMES, windows, torch.tensor(rows), unsure_below=unsure_below, frames=(5, 10, 10, 15, 20),
        timestamps=(0.5, 1.0, 1.0, 1.5, 2.0), faces=(one[0], one[1], other, one[2], None),
    )  # fmt: skip


def whole():
    rows = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    windows = ((0.0, 1.0), (0.5, 1.5), (1.0, 2.0))
    return Prediction("clip.mp4", NAMES, windows, rows, frames=(5, 10, 15), timestamps=(0.5, 1.0, 1.5))


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_file_has_a_row_for_every_window_and_person(tmp_path):
    people().save(tmp_path / "clip", ("json", "csv"))
    rows = read(tmp_path / "clip.csv")
    assert list(rows[0]) == [*COLUMNS, "happy", "sad", "frame (class)"]
    assert [row["face_id"] for row in rows] == ["0", "0", "3", "0", ""]
    assert [row["success"] for row in rows] == ["1", "1", "1", "1", "0"]
    assert [row["label"] for row in rows] == ["happy", "happy", "sad", "sad", "no face"]
    assert [row["frame"] for row in rows] == ["5", "10", "10", "15", "20"]
    assert {name: rows[1][name] for name in COLUMNS} == {
        "input": "some/clip.mp4", "frame": "10", "timestamp": "1.000", "start": "0.500", "end": "1.500",
        "face_id": "0", "FaceRectX": "11.00", "FaceRectY": "20.00", "FaceRectWidth": "30.50",
        "FaceRectHeight": "40.00", "FaceScore": "0.900000", "success": "1", "label": "happy",
    }  # fmt: skip
    assert [rows[4][name] for name in ("FaceRectX", "FaceScore", "happy")] == ["", "", ""]


def test_openface_has_its_names_first_and_counts_frames_from_one(tmp_path):
    people().save(tmp_path / "clip", ("json", "csv"), "openface")
    rows = read(tmp_path / "clip.csv")
    assert list(rows[0])[:5] == ["frame", "face_id", "timestamp", "confidence", "success"]
    assert "FaceScore" not in rows[0]
    assert {"input", "start", "end", "FaceRectX", "label", "happy"} < set(rows[0])
    assert (rows[0]["frame"], rows[0]["confidence"], rows[4]["success"]) == ("6", "0.900000", "0")


def test_the_json_file_says_the_same_of_everybody(tmp_path):
    people().save(tmp_path / "clip", ("json",), about={"made": 1})
    content = json.loads((tmp_path / "clip.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["made"] == 1
    assert [(p["id"], p["label"], p["windows"], p["start"], p["end"]) for p in content["people"]] == [
        (0, "happy", 3, 0.0, 2.0), (3, "sad", 1, 0.5, 1.5),
    ]  # fmt: skip
    assert content["people"][0]["probabilities"]["happy"] == pytest.approx(0.6)
    assert content["windows"][4]["probabilities"] == {"happy": None, "sad": None, "frame": None}
    assert content["windows"][4]["face"] is None
    assert content["windows"][1]["face"] == {"id": 0, "box": [11.0, 20.0, 30.5, 40.0], "score": 0.9}
    assert "people" not in whole().as_dict()
    assert "face" not in whole().as_dict()["windows"][0]


def test_one_person_has_a_row_for_every_window():
    theirs = people().of(3)
    assert theirs.windows == ((0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5))
    assert theirs.frames == (5, 10, 15, 20)
    assert theirs.window_probabilities.isnan().any(1).tolist() == [True, False, True, True]
    assert theirs.label == "sad"


def test_smoothing_is_the_mean_over_neighbours_of_the_same_person():
    smooth = people().smoothed(1.0).window_probabilities
    expected = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]
    torch.testing.assert_close(smooth[:4], torch.tensor(expected))
    assert smooth[4].isnan().all()
    assert torch.equal(whole().smoothed(0).window_probabilities, whole().window_probabilities)
    torch.testing.assert_close(whole().smoothed(99).window_probabilities, whole().probabilities.expand(3, 3))
    for seconds in (-1, NAN, float("inf")):
        with pytest.raises(InputError, match=r"smooth=.* is no number of seconds"):
            whole().smoothed(seconds)


def test_unsure_and_no_face_are_two_things():
    assert [r["label"] for r in people(0.65).records()] == ["happy", "unsure", "sad", "unsure", "no face"]


def test_pandas_takes_the_records():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(people().records())
    assert list(frame.columns) == [*COLUMNS, "happy", "sad", "frame (class)"]
    assert frame.groupby("face_id")["happy"].mean().tolist() == pytest.approx([0.6, 0.2])
    assert frame["happy"].isna().sum() == 1


@pytest.mark.parametrize("prediction", [people(), whole()], ids=["people", "whole"])
def test_py_feat_reads_the_csv_file(tmp_path, prediction):
    pytest.importorskip("pandas")
    try:
        from feat.utils.io import read_feat
    except Exception as error:  # of any of its many libraries
        pytest.skip(f"py-feat does not import: {error}")
    prediction.save(tmp_path / "clip", ("json", "csv"))
    fex = read_feat(str(tmp_path / "clip.csv"))
    assert fex["input"].tolist() == [prediction.path] * len(prediction.windows)
    assert fex.time["frame"].tolist() == list(prediction.frames)
    assert list(fex.faceboxes.columns) == ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"]
    if prediction.faces:
        assert fex.faceboxes.iloc[1].tolist() == pytest.approx([11, 20, 30.5, 40, 0.9])


def test_py_feat_names_its_columns_so():
    """Its list is data in a file that imports nothing, which is read here where its libraries are not installed."""
    import ast
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("feat")
    if package is None or package.origin is None:
        pytest.skip("py-feat is not installed")
    tree = ast.parse((Path(package.origin).parent / "utils" / "__init__.py").read_text(encoding="utf-8"))
    lists = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        and target.id in ("FEAT_FACEBOX_COLUMNS", "FEAT_TIME_COLUMNS", "openface_time_columns")
    }  # fmt: skip
    assert {*lists["FEAT_FACEBOX_COLUMNS"], *lists["FEAT_TIME_COLUMNS"]} <= set(COLUMNS)
    assert [name for name in COLUMNS if name in lists["FEAT_FACEBOX_COLUMNS"]] == lists["FEAT_FACEBOX_COLUMNS"]
    assert set(lists["openface_time_columns"]) <= set(in_style(people().record(0), "openface"))


def test_parquet_has_the_same_columns_with_their_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, prediction in (("people", people()), ("whole", whole())):
        prediction.save(tmp_path / name, ("json", "parquet"))
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        assert table.to_pylist() == prediction.records()
        kinds = {str(field.type) for field in table.schema if field.name.startswith("FaceRect")}
        assert kinds == {"double"}
        assert str(table.schema.field("face_id").type) == "int64"


def test_without_pyarrow_parquet_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"writing Parquet needs pyarrow; pip install 'fe-adapter\[parquet\]'"):
        PredictConfig(formats=("json", "parquet"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"formats": ("csv",)}, "must name json"),
        ({"formats": ("json", "json")}, "none twice"),
        ({"formats": ("json", "xml")}, "'xml' is not one of"),
        ({"columns": "x"}, "columns='x' is not one of"),
        ({"window": 0.0}, "windows and steps must be positive"),
        ({"step": NAN}, "windows and steps must be positive"),
        ({"smooth": -1.0}, "is no number of seconds"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        PredictConfig(**values)


def test_pictures_of_people_who_are_gone_are_removed_and_no_others(tmp_path):
    from tests.videos import make_video

    make_video(tmp_path / "clip.mp4", 31)
    for name in ("clip.face7.png", "clip.png", "clip.faces.png", "clip-2.face7.png", "clip.json"):
        (tmp_path / name).write_text("{}")
    whole_video = Prediction(str(tmp_path / "clip.mp4"), NAMES, people().windows, people().window_probabilities,
                             faces=people().faces)  # fmt: skip
    whole_video.save(tmp_path / "clip", ("json", "png"))
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "clip.face0.png", "clip.face3.png", "clip.faces.png", "clip-2.face7.png",
    }  # fmt: skip


def test_columns_of_classes_are_told_from_the_others():
    assert class_columns(["happy", "label", "confidence"]) == ["happy", "label (class)", "confidence (class)"]


def test_a_growing_table_has_every_row_at_once_and_names_in_any_encoding(tmp_path):
    records = people().records()
    with GrowingTable(tmp_path / "new" / "clip.csv") as table:
        for number, record in enumerate(records, 1):
            table.add(record | {"input": "caf\udce9"})
            assert len((tmp_path / "new" / "clip.csv").read_bytes().splitlines()) == 1 + number
    assert b"caf\xe9" in (tmp_path / "new" / "clip.csv").read_bytes()
    write_table(tmp_path / "clip.csv", [record | {"input": "caf\udce9"} for record in records])
    assert (tmp_path / "clip.csv").read_bytes() == (tmp_path / "new" / "clip.csv").read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        GrowingTable(tmp_path / "file" / "clip.csv").add(records[0])
