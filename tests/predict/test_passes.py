"""One pass over a video gives what reading every window by itself gives; streams give what files give."""

from __future__ import annotations

import gc
import itertools
import time
import weakref

import pytest
import torch

from fe_adapter import predict_video
from fe_adapter.data import FrameSampler, VideoFolder, probe, read_frames, sliding_windows, stream_frames
from fe_adapter.data.faces import FaceRecipe, crop_to_faces
from fe_adapter.data.transforms import EvalTransform
from fe_adapter.models.classifier import expected_frames
from fe_adapter.models.inference import classify
from fe_adapter.predict import passes
from fe_adapter.predict.ahead import ahead
from fe_adapter.predict.passes import Faces, Look, answers, looks_of, looks_of_live
from fe_adapter.predict.seen import MOST, FilmStrip, Seen, Tracks
from tests.faces import find_white, write_squares
from tests.models.test_classifier import classifier
from tests.videos import change_size, make_video

LONG = {"times": [i + i // 7 for i in range(31)]}  # 3.5 s, at a variable frame rate


def one_by_one(model, info, windows, batch_size):
    """As every window was read by itself, before there was one pass."""
    sampler, transform = FrameSampler(model.num_frames), EvalTransform(*expected_frames(model))
    clips = [transform(read_frames(info, sampler(info, window=window))) for window in windows]
    batches = ((i, torch.stack(clips[i : i + batch_size])) for i in range(0, len(clips), batch_size))
    return torch.cat([rows for _, rows in classify(model, batches)])


@pytest.mark.parametrize("size", [(48, 64), (32, 32), (180, 320), (64, 36)], ids=str)
@pytest.mark.parametrize(("window", "step"), [(1.0, 0.5), (0.4, 0.9), (1.0, 0.13), (0.1, 0.1), (99, 1)], ids=str)
def test_probabilities_are_those_of_windows_read_one_by_one(tmp_path, size, window, step):
    model = classifier(num_frames=4)
    info = probe(make_video(tmp_path / "clip.mp4", 31, size, **LONG))
    prediction = predict_video(model, info, window=window, step=step, batch_size=3)
    windows = sliding_windows(info.duration, window, step)
    assert prediction.windows == tuple(windows)
    assert torch.equal(prediction.window_probabilities, one_by_one(model, info, windows, 3))
    sampler = FrameSampler(4)
    assert prediction.frames == tuple(sampler(info, window=window)[2] for window in windows)
    assert prediction.timestamps == tuple(info.timestamps[list(prediction.frames)])


def test_so_are_those_of_a_video_whose_size_changes_and_of_a_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    model = classifier(num_frames=2)
    for i in range(20):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (10 * i, 0, 99)).save(tmp_path / "frames" / f"{i}.png")
    for path in (change_size(tmp_path / "clip.mjpeg", (48, 64), (96, 128), (64, 48)), tmp_path / "frames"):
        info = probe(path)
        windows = sliding_windows(info.duration, 0.2, 0.1)
        prediction = predict_video(model, info, window=0.2, step=0.1)
        assert torch.equal(prediction.window_probabilities, one_by_one(model, info, windows, 8))


def test_every_frame_is_decoded_and_scaled_once(tmp_path, monkeypatch):
    info = probe(make_video(tmp_path / "clip.mp4", 31))
    cuts, scaled = [], []
    real = passes.finish
    monkeypatch.setattr(passes, "compact", lambda part, edit: cuts.append(part) or part)
    monkeypatch.setattr(passes, "finish", lambda part, edit: scaled.extend(part) or real(part, edit))
    prediction = predict_video(classifier(num_frames=4), info, window=1.0, step=0.1)
    assert len(prediction.windows) == 22
    assert len(cuts) == len(scaled) <= 31 < 22 * 4


def test_few_frames_are_in_memory_at_a_time(tmp_path, monkeypatch):
    """However long the video is: those of the windows that wait, and of those that are to come."""
    alive, most = weakref.WeakSet(), 0

    class Part(passes.Part):
        def __init__(self, *arguments):
            nonlocal most
            super().__init__(*arguments)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(passes, "Part", Part)
    counts = []
    for seconds in (20, 60):
        path = make_video(tmp_path / f"{seconds}.mp4", 30, fps=1, times=[2 * i for i in range(30)])
        most = 0
        predict_video(classifier(num_frames=2), path, window=4.0, step=2.0, batch_size=2)
        counts.append(most)
        gc.collect()
    assert counts[0] == pytest.approx(counts[1], abs=3)
    assert max(counts) <= 20


@pytest.mark.parametrize("step", [0.5, 1.0, 1.7])
def test_a_stream_gives_what_the_file_gives(tmp_path, step):
    model = classifier(num_frames=4)
    path = make_video(tmp_path / "clip.mp4", 31, **LONG)
    file = predict_video(model, path, window=1.0, step=step)
    looks = looks_of_live(stream_frames(str(path)), 1.0, step, 4, EvalTransform(*expected_frames(model)))
    live = [(look, row) for _, look, row in answers(model, ((0, look) for look in looks), 8, at_once=True) if look]
    count = len(file.windows) - 1  # the last one of a file ends where it ends, which a stream does not know
    assert [look.start for look, _ in live[:count]] == pytest.approx([start for start, _ in file.windows[:-1]])
    assert [look.frame for look, _ in live[:count]] == list(file.frames[:count])
    torch.testing.assert_close(torch.stack([row for _, row in live[:count]]), file.window_probabilities[:count])


def test_a_short_stream_is_one_window_and_an_empty_one_none(tmp_path):
    transform = EvalTransform((32, 32))
    frame = torch.zeros(3, 40, 40, dtype=torch.uint8)
    (look,) = looks_of_live(iter([(0.0, frame), (0.1, frame)]), 2.0, 1.0, 4, transform)
    assert (look.start, look.end, look.frame, len(look.parts)) == (0.0, 0.1, 1, 4)
    assert list(looks_of_live(iter([]), 2.0, 1.0, 4, transform)) == []
    looks = [look for look in looks_of_live(((i / 10, frame) for i in range(36)), 2.0, 1.0, 4, transform) if look]
    assert [(look.start, look.end) for look in looks] == [(0.0, 2.0), (1.0, 3.0), (2.0, 3.5)]


def test_a_stream_of_any_length_keeps_few_frames():
    frame = torch.zeros(3, 32, 32, dtype=torch.uint8)
    seen = Seen()
    for look in looks_of_live(((i / 5, frame) for i in range(2000)), 2.0, 1.0, 4, EvalTransform((32, 32)), seen=seen):
        assert look is None or len(look.parts) == 4
    assert MOST // 2 <= len(seen.strips[None]) < MOST


MOVING = [[(5 + i, 10, 20, 20)] if i < 20 or i > 40 else [] for i in range(60)]  # away for two seconds


def test_there_is_one_row_for_each_person_and_none_is_said_plainly(tmp_path):
    path = write_squares(tmp_path / "clip.mp4", MOVING)
    prediction = predict_video(classifier(num_frames=4), path, window=1.0, step=0.5, faces="all", detector=find_white)
    who = [None if face is None else face.id for face in prediction.faces]
    assert [key for key, _ in itertools.groupby(who)] == [0, None, 1]
    assert prediction.people == (0, 1)
    for face, row, (start, _), frame in zip(
        prediction.faces, prediction.window_probabilities, prediction.windows, prediction.frames, strict=True
    ):
        assert row.isnan().all() == (face is None)
        if face is not None and start > 0 and abs(frame - 20) > 3 and abs(frame - 41) > 3:
            assert face.box[0] == pytest.approx(5 + frame, abs=3)
    assert prediction.seen.tracks.at(10)[0] == pytest.approx((15, 10, 20, 20), abs=3)
    assert prediction.seen.tracks.at(30) == {}
    assert set(prediction.seen.strips) == {0, 1}


@pytest.mark.parametrize("gap", [0, 5])
def test_prediction_sees_what_training_sees(tmp_path, gap):
    """Of a clip that is a whole video, with a face that is away for ``gap`` frames."""
    path = tmp_path / "videos/a/clip.mp4"
    write_squares(path, [[(5 + i, 10 + i / 2, 20, 24)] if not 6 <= i < 6 + gap else [] for i in range(24)])
    write_squares(tmp_path / "videos/b/clip.mp4", [[(9, 9, 20, 20)]] * 24)
    model, recipe = classifier(num_frames=8), FaceRecipe("largest", size=32)
    dataset = VideoFolder(
        tmp_path / "videos", sampler=FrameSampler(8), transform=EvalTransform(*expected_frames(model))
    )
    crop_to_faces(dataset, recipe, detector=find_white, progress=False)
    (index,) = [i for i, name in enumerate(dataset.paths) if str(name) == str(path)]
    prediction = predict_video(model, path, window=99, faces=recipe, detector=find_white)
    with torch.no_grad():
        expected = model(dataset[index]["video"][None]).softmax(-1)
    torch.testing.assert_close(prediction.window_probabilities, expected)


def test_nobody_at_all_is_no_error(tmp_path):
    path = write_squares(tmp_path / "clip.mp4", [[]] * 20)
    prediction = predict_video(classifier(num_frames=4), path, window=1.0, faces="largest", detector=find_white)
    assert prediction.label == "no face"
    assert {record["label"] for record in prediction.records()} == {"no face"}
    prediction.save(tmp_path / "clip")


def test_two_and_fifty_people_each_have_their_windows(tmp_path):
    def find(frame):
        return [(x, y, 8, 8, 0.9) for x in range(2, 92, 9) for y in range(2, 47, 9)][:50]

    path = write_squares(tmp_path / "clip.mp4", [[]] * 11)
    model = classifier(num_frames=2)
    many = predict_video(model, path, window=1.0, step=0.5, faces="all", detector=find, batch_size=16)
    assert len(many.people) == 50
    assert len(many.windows) == 50 * len(set(many.windows))
    largest = predict_video(model, path, window=1.0, step=0.5, faces="largest", detector=find)
    assert len(largest.windows) == len(set(many.windows))


def test_who_is_seen_in_half_of_the_frames_counts():
    faces, seen = Faces(FaceRecipe("all"), find_white), Seen(tracks=Tracks())
    shared = passes.Shared(EvalTransform((32, 32)), faces, seen)
    white, black = torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(3, 64, 96, dtype=torch.uint8)
    white[:, 10:30, 10:30] = 255
    for i, frame in enumerate([white, black, white, black, black, black]):
        shared.add(i, i / 10, frame, shared.find(i, i / 10, frame))
    (look,) = shared.looks(0, 1, [0, 1, 2, 3])
    assert look.face.id == 0
    parts = [shared._kept[i][1][0][1] for i in (0, 2)]
    assert [parts.index(part) for part in look.parts] == [0, 0, 1, 1]
    (look,) = shared.looks(0, 1, [2, 3, 4, 5])
    assert (look.face, look.parts) == (None, ())


def test_batches_go_across_videos_and_answers_come_in_order(tmp_path, monkeypatch):
    model, sizes = classifier(num_frames=2), []
    infos = [probe(make_video(tmp_path / f"{n}.mp4", n)) for n in (11, 21, 12)]
    transform = EvalTransform(*expected_frames(model))

    def items():
        for place, info in enumerate(infos):
            yield place, "begin"
            for look in looks_of(info, sliding_windows(info.duration, 1.0, 0.5), 2, transform):
                yield place, look
            yield place, "end"

    real = model.forward
    monkeypatch.setattr(model, "forward", lambda video: sizes.append(len(video)) or real(video))
    got = list(answers(model, items(), 4))
    assert [key for key, _ in itertools.groupby(key for key, _, _ in got)] == [0, 1, 2]
    assert [item if isinstance(item, str) else "look" for key, item, _ in got if key == 1] == [
        "begin", "look", "look", "look", "look", "end",
    ]  # fmt: skip
    assert sizes == [4, 4]
    assert all((row is not None) == isinstance(item, Look) for _, item, row in got)


def test_a_thread_that_is_ahead_ends_when_nobody_asks_any_more():
    closed = []

    def numbers():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    taken = ahead(numbers(), 3)
    assert list(itertools.islice(taken, 10)) == list(range(10))
    taken.close()
    deadline = time.monotonic() + 10
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed


def test_a_strip_has_pictures_at_even_distances():
    strip = FilmStrip()
    for i in range(10_000):
        strip.add(i / 10, torch.full((3, 240, 320), i // 40, dtype=torch.uint8))
    assert MOST // 2 <= len(strip) < MOST
    assert (strip.height, strip.width) == (120, 160)
    levels = strip.nearest([100.0, 500.0, 900.0])[:, 0, 0, 0].tolist()
    assert levels == pytest.approx([25, 125, 225], abs=6)
