"""Folders of frames in the place of videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fe_adapter.data import FrameSampler, open_dataset, probe, read_frames
from fe_adapter.data.frames import FRAME_RATE, frame_names, natural_key
from fe_adapter.data.reading import check_frames
from fe_adapter.errors import InputError
from tests.published import Image, make_frames, write
from tests.videos import make_video


def levels(video):
    return [round(frame.float().mean().item() / 10) for frame in video]


@pytest.mark.parametrize("names", ["{}.jpg", "{:05d}.png", "frame_{}.JPEG", "img-{}-x.webp"])
def test_frames_are_in_the_order_of_their_numbers(tmp_path, names):
    folder = make_frames(tmp_path / "clip", range(0, 130, 10), names)
    (folder / "notes.txt").touch()
    (folder / "._1.jpg").touch()
    info = probe(folder)
    assert (info.num_frames, info.height, info.width) == (13, 48, 48)
    assert info.duration == pytest.approx(13 / FRAME_RATE)
    assert levels(read_frames(folder)) == list(range(13))
    assert levels(read_frames(info, [11, 2, 2])) == [11, 2, 2]
    with pytest.raises(IndexError):
        read_frames(info, [13])


def test_any_names_can_be_sorted():
    names = ["a", "a1", "1", "", "a1b2", "10", "9", "a01", "٣", "b"]
    assert sorted(names, key=natural_key) == ["", "1", "9", "10", "a", "a01", "a1", "a1b2", "b", "٣"]


def test_colours_are_rgb_whatever_the_mode(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    red = Image.new("RGB", (8, 8), (204, 0, 0))
    red.save(folder / "1.png")
    red.convert("P").save(folder / "2.png")
    red.convert("RGBA").save(folder / "3.png")
    Image.new("L", (8, 8), 204).save(folder / "4.png")
    frames = read_frames(folder)
    assert frames[:3, :, 0, 0].tolist() == [[204, 0, 0]] * 3
    assert frames[3, :, 0, 0].tolist() == [204] * 3


def test_a_turned_photograph_is_upright(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[274] = 6  # to be turned by a quarter
    image.save(folder / "1.jpg", exif=exif)
    info = probe(folder)
    assert (info.height, info.width) == (20, 10)
    assert read_frames(info).shape == (1, 3, 20, 10)


def test_crops_of_nearly_one_shape_are_scaled_to_the_first(tmp_path):
    folder = make_frames(tmp_path / "clip", [0, 10], size=(40, 42))
    Image.new("RGB", (84, 80), (20, 20, 20)).save(folder / "3.jpg")
    assert read_frames(folder).shape == (3, 3, 40, 42)
    assert levels(read_frames(folder)) == [0, 1, 2]


def other_shape(folder):
    Image.new("RGB", (96, 48)).save(folder / "7.jpg")


def sixteen_bits(folder):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "7.png")


def cut(folder):
    content = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(content[: len(content) // 2])


BAD = {
    "another shape": (other_shape, "7.jpg is 48x96 where the folder's first frame is 48x48"),
    "sixteen bits": (sixteen_bits, "7.png has more than eight bits a channel"),
    "cut off": (cut, "3.jpg is no image, or a damaged one"),
    "empty": (lambda folder: (folder / "3.jpg").write_bytes(b""), "3.jpg is empty"),
    "text": (lambda folder: (folder / "3.jpg").write_text("no image"), "3.jpg is no image, or a damaged one"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_frame_is_refused_by_name(tmp_path, case):
    spoil, message = BAD[case]
    folder = make_frames(tmp_path / "clip")
    spoil(folder)
    for read in (read_frames, lambda path: check_frames(probe(path))):
        with pytest.raises(InputError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_a_frame_in_two_formats_is_refused(tmp_path):
    folder = make_frames(tmp_path / "clip")
    Image.new("RGB", (48, 48)).save(folder / "2.png")
    with pytest.raises(InputError, match=r"holds a frame twice, as 2.jpg and as 2.png"):
        frame_names(folder)


def test_an_empty_folder_is_no_video(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(InputError, match="is a folder, not a video file, and holds no frames"):
        probe(tmp_path / "clip")


def test_folders_of_frames_stand_where_videos_could(tmp_path):
    for name in ("happy", "sad"):
        make_frames(tmp_path / "videos" / name / "day" / "0001")
        make_video(tmp_path / "videos" / name / "0002.mp4")
        (tmp_path / "videos" / name / "0002.jpg").touch()  # a picture of the video
    dataset = open_dataset(tmp_path / "videos", sampler=FrameSampler(4))
    assert [path.rpartition("/")[2] for path in dataset.paths] == ["0002.mp4", "0001"] * 2
    assert [tuple(item["video"].shape) for item in dataset] == [(4, 3, 48, 64), (4, 3, 48, 48)] * 2
    rows = [f"videos/{name}/{clip},{name}" for name in ("happy", "sad") for clip in ("day/0001", "0002.mp4")]
    listed = open_dataset(write(tmp_path / "list.csv", "\n".join(["path,label", *rows])), sampler=FrameSampler(4))
    assert sorted(listed.paths) == sorted(dataset.paths)
    assert torch.equal(listed[0]["video"], dataset[1]["video"])


def test_stills_in_a_class_folder_are_no_videos(tmp_path):
    make_frames(tmp_path / "happy")
    make_frames(tmp_path / "sad" / "0001")
    with pytest.raises(InputError, match="holds no videos; its images are no video, unless they are the frames in a"):
        open_dataset(tmp_path, sampler=FrameSampler(4))


def test_frames_in_a_clip_and_below_it_are_refused(tmp_path):
    make_frames(tmp_path / "happy" / "0001")
    make_frames(tmp_path / "happy" / "0001" / "aligned")
    make_frames(tmp_path / "sad" / "0001")
    with pytest.raises(InputError, match="0001 holds frames, and so does the folder aligned in it"):
        open_dataset(tmp_path, sampler=FrameSampler(4))
