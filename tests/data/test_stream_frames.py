"""Frames one after another: of files, and of what is no file."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest
import torch

from fe_adapter.data import probe, read_frames, stream_frames
from fe_adapter.data.live import without_password
from fe_adapter.data.reading import frames_in_order
from fe_adapter.errors import InputError
from fe_adapter.predict.ahead import ahead
from fe_adapter.predict.live import at_rate
from tests.videos import change_size, make_video, rotate


def test_a_file_gives_all_its_frames(tmp_path):
    path = make_video(tmp_path / "clip.mp4", 12, times=[0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 14, 15])
    times, frames = zip(*stream_frames(str(path)), strict=True)
    assert list(times) == pytest.approx(probe(path).timestamps.tolist())
    assert torch.equal(torch.stack(frames), read_frames(path))


@pytest.mark.parametrize("indices", [range(12), [0, 3, 11], [5], []], ids=str)
def test_one_pass_gives_what_reading_gives(tmp_path, indices):
    path = make_video(tmp_path / "clip.mp4", 12, times=[0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 14, 15])
    turned = rotate(make_video(tmp_path / "turned.mp4", 12), 270)
    no_times = make_video(tmp_path / "raw.h264", 12)
    far = make_video(tmp_path / "far.mp4", 12, fps=1, times=list(range(0, 600, 50)), x264={"g": "4"})
    for file in (path, turned, no_times, far):
        info = probe(file)
        got = list(frames_in_order(info, indices))
        assert [index for index, _ in got] == list(indices)
        for index, frame in got:
            assert torch.equal(frame, read_frames(info, [index])[0])


def test_a_folder_gives_its_frames_in_order(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for i in range(20):
        Image.new("RGB", (8, 6), (i, i, i)).save(tmp_path / f"{i}.png")
    got = [(index, int(frame[0, 0, 0])) for index, frame in frames_in_order(probe(tmp_path), range(1, 20, 2))]
    assert got == [(i, i) for i in range(1, 20, 2)]


def test_an_address_gives_the_same(tmp_path):
    path = make_video(tmp_path / "clip.mp4", 5)
    times, frames = zip(*stream_frames(f"file://{path}"), strict=True)
    assert list(times) == pytest.approx(probe(path).timestamps.tolist())
    assert torch.equal(torch.stack(frames), read_frames(path))


def test_frames_of_another_size_are_fitted(tmp_path):
    path = change_size(tmp_path / "clip.mjpeg", (48, 64), (96, 128), (64, 48))
    for source in (str(path), f"file://{path}"):
        assert {tuple(frame.shape) for _, frame in stream_frames(source)} == {(3, 48, 64)}


def test_what_gives_no_frame_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.suppress(OSError):
        address = f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"
        with pytest.raises(InputError, match=r"clip\.mp4 has given no frame for 0\.5 s"):  # it never answers
            next(stream_frames(address, timeout=0.5))
    with pytest.raises(InputError, match="cannot be read, or not any more"):
        next(stream_frames(address, timeout=5))
    with pytest.raises(InputError, match="no such file"):
        next(stream_frames(str(tmp_path / "clip.mp4")))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="cannot be read, or not any more"):
        next(stream_frames(f"file://{tmp_path}/text.mp4"))


@pytest.mark.skipif(sys.platform != "linux", reason="cameras have other names")
def test_a_camera_that_is_not_there():
    with pytest.raises(InputError, match=r"^977 cannot be read, or not any more"):
        next(stream_frames("977"))


def test_as_many_frames_as_wanted():
    frames = [(i / 25, i) for i in range(50)]
    assert list(at_rate(iter(frames), None)) == frames
    found = [i for _, i in at_rate(iter(frames), 10)]
    assert found[:5] == [0, 3, 5, 8, 10]
    assert len(found) == 20
    assert list(at_rate(iter(frames), 100)) == frames
    late = [(0.0, 0), (5.0, 1), (5.01, 2), (5.02, 3), (5.2, 4)]
    assert [i for _, i in at_rate(iter(late), 10)] == [0, 1, 4]


def test_the_newest_frame_is_taken():
    go_on = iter(range(10**9))
    taken = []
    for i in ahead(go_on, 1, may_lose=True):
        taken.append(i)
        while next(go_on) < taken[-1] + 1000:  # the thread reads on, too
            pass
        if len(taken) == 3:
            break
    assert taken[2] > taken[1] > taken[0]

    def broken():
        yield 0
        raise InputError("the camera is gone")

    with pytest.raises(InputError, match="the camera is gone"):
        list(ahead(broken(), 1))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:secret@cam.local/1?x=a@b", "rtsp://cam.local/1?x=a@b"),
        ("cannot open http://me@host: gone", "cannot open http://host: gone"),
        ("a@b.mp4", "a@b.mp4"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_passwords_in_addresses_are_not_told(text, shown):
    assert without_password(text) == shown
