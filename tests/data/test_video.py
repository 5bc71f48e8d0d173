"""Reading video files, good ones and bad ones."""

from __future__ import annotations

import contextlib
import os
import weakref
from fractions import Fraction

import pytest
import torch

from fe_adapter.data import FrameSampler, probe, read_frames, video
from fe_adapter.errors import InputError
from tests.videos import (
    change_size,
    corner,
    display_matrix,
    levels,
    make_empty_video,
    make_sound,
    make_sound_with_cover,
    make_video,
    rotate,
    trim,
)

KINDS = {
    "h264": {},
    "h264 in mkv": {"suffix": ".mkv"},
    "10 bit": {"pix_fmt": "yuv420p10le"},
    "full chroma": {"pix_fmt": "yuv444p"},
    "odd size": {"size": (47, 63), "pix_fmt": "yuv444p"},
    "mpeg4 in avi": {"codec": "mpeg4", "suffix": ".avi"},
    "lossless": {"codec": "ffv1", "suffix": ".mkv", "size": (33, 35)},
    "10 bit lossless": {"codec": "ffv1", "pix_fmt": "yuv444p10le", "suffix": ".mkv"},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "suffix": ".avi"},
    "fast start": {"container": {"movflags": "faststart"}},
    "fragmented": {"container": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_read_once_and_in_order(kind, tmp_path):
    options = dict(KINDS[kind])
    path = make_video(tmp_path / f"video{options.pop('suffix', '.mp4')}", **options)
    info = probe(path)
    assert info.num_frames == 12
    assert (info.height, info.width) == options.get("size", (48, 64))
    assert info.duration == pytest.approx(1.2)
    assert info.timestamps == pytest.approx([i / 10 for i in range(12)])
    video = read_frames(path)
    assert video.dtype == torch.uint8
    assert video.shape == (12, 3, info.height, info.width)
    assert levels(video) == list(range(12))
    assert corner(video[3]) == "top left"


def test_frames_come_in_the_order_they_are_asked_for(tmp_path):
    path = make_video(tmp_path / "video.mp4")
    assert levels(read_frames(path, [7, 2, 2, 11, 0])) == [7, 2, 2, 11, 0]
    with pytest.raises(IndexError):
        read_frames(path, [12])


@pytest.mark.parametrize(
    ("clockwise", "place", "size"),
    [(0, "top left", (48, 64)), (90, "top right", (64, 48)), (180, "bottom right", (48, 64)),
     (270, "bottom left", (64, 48))],
)  # fmt: skip
def test_rotation_is_honoured(clockwise, place, size, tmp_path):
    info = probe(rotate(make_video(tmp_path / "video.mp4"), clockwise))
    video = read_frames(info, [2])
    assert (info.height, info.width) == size
    assert tuple(video.shape[2:]) == size
    assert corner(video[0]) == place


def test_a_single_frame_is_a_video(tmp_path):
    info = probe(make_video(tmp_path / "video.mp4", num_frames=1))
    assert (info.num_frames, info.duration) == (1, pytest.approx(0.04))
    assert FrameSampler(4)(info) == [0, 0, 0, 0]
    assert read_frames(info, [0, 0]).shape == (2, 3, 48, 64)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_is_sampled_by_time(suffix, tmp_path):
    # eight frames in the first second, then one that stands for three seconds, then the last
    times = [0, 1, 2, 3, 4, 5, 6, 7, 8, 32]
    info = probe(make_video(tmp_path / f"video{suffix}", num_frames=10, times=times, fps=8))
    assert info.timestamps == pytest.approx([t / 8 for t in times], abs=1e-3)
    chosen = FrameSampler(4)(info)  # the middles of four parts of 4.125 s: 0.52, 1.55, 2.58, 3.61 s
    assert chosen == [4, 8, 8, 8]
    assert levels(read_frames(info, chosen)) == [4, 8, 8, 8]


def test_far_frames_of_a_long_video_are_sought(tmp_path):
    """Seeking and decoding in sequence give the same frames."""
    path = make_video(tmp_path / "video.mp4", num_frames=31, fps=1)
    every = read_frames(path)
    chosen = [0, 9, 10, 22, 30]
    assert torch.equal(read_frames(path, chosen), every[chosen])


def text_file(path):
    path.write_text("this is no video\n" * 100)
    return path


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))
    return path


def folder(path):
    path.mkdir()
    return path


BAD = {
    "missing": (lambda p: p, "no such file"),
    "a folder": (folder, "is a folder, not a video file"),
    "empty": (lambda p: p.touch() or p, "is empty"),
    "text": (text_file, "is no video, or a damaged one"),
    "truncated": (lambda p: cut(make_video(p), 0.6), "is no video, or a damaged one|has no video"),
    "truncated mkv": (lambda p: cut(make_video(p.with_suffix(".mkv")), 0.6), "is truncated: .* of 1.2 s are there"),
    "truncated, fast start": (
        lambda p: cut(make_video(p, container={"movflags": "faststart"}), 0.6),
        "is truncated|is no video, or a damaged one",
    ),
    "sound only": (make_sound, "has no video, only audio"),
    "sound with a cover": (make_sound_with_cover, "has no video, only audio"),
    "no frames": (lambda p: make_empty_video(p.with_suffix(".mkv")), "is no video, or a damaged one"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("read", [probe, read_frames])
def test_bad_files_are_refused_in_one_line(case, read, tmp_path):
    make, message = BAD[case]
    path = make(tmp_path / "video.mp4")
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_names_with_a_colon_are_files(tmp_path, monkeypatch):
    make_video(tmp_path / "a:b.mp4", num_frames=3)
    monkeypatch.chdir(tmp_path)
    assert levels(read_frames("a:b.mp4")) == [0, 1, 2]


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("video.flv", {"codec": "flv1"}), ("video.flv", {}), ("video.mp4", {"container": FRAGMENTS}),
     ("video.mxf", {"codec": "mpeg2video", "fps": 25}), ("video.webm", {"codec": "libvpx"})],
)  # fmt: skip
def test_a_file_that_ends_before_its_header_says_is_truncated(name, options, tmp_path):
    path = make_video(tmp_path / name, num_frames=31, **options)
    assert len(read_frames(path)) == 31
    with pytest.raises(InputError, match=r"is truncated: .* s are there"):
        probe(cut(path, 0.6))


def test_sound_hides_no_truncation(tmp_path):
    path = make_video(tmp_path / "video.mkv", num_frames=31, has_sound=True)
    assert probe(path).num_frames == 31
    with pytest.raises(InputError, match=r"is truncated: .* s are there"):
        probe(cut(path, 0.6))


@pytest.mark.parametrize("fps", [1, 2])
@pytest.mark.parametrize(("suffix", "codec"), [(".flv", "flv1"), (".mkv", "libx264"), (".mp4", "libx264")])
def test_few_frames_a_second_are_no_truncation(fps, suffix, codec, tmp_path):
    path = make_video(tmp_path / f"video{suffix}", num_frames=5, fps=fps, codec=codec)
    assert probe(path).num_frames == 5


def test_a_transport_stream_that_ends_within_a_packet_is_said_to(tmp_path, caplog):
    path = make_video(tmp_path / "video.ts", num_frames=24)
    probe(path)
    assert not caplog.text
    os.truncate(path, path.stat().st_size // 188 // 2 * 188 + 100)
    probe(path)
    assert f"{path} ends within a packet: it may be truncated" in caplog.text


def test_looking_at_a_video_keeps_no_packet_of_it(tmp_path, monkeypatch):
    path = make_video(tmp_path / "video.mkv", num_frames=30)
    alive, most = weakref.WeakSet(), 0

    class Packet:  # PyAV's own have no weak references
        def __init__(self, packet):
            self.packet = packet
            alive.add(self)

        def __getattr__(self, name):
            return getattr(self.packet, name)

    class Container:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, *streams):
            nonlocal most
            for packet in self.container.demux(*streams):
                yield Packet(packet)
                most = max(most, len(alive))

    @contextlib.contextmanager
    def opened(path, **options):
        with real(path, **options) as (container, stream):
            yield Container(container), stream

    real = video.opened
    monkeypatch.setattr(video, "opened", opened)
    assert probe(path).num_frames == 30
    assert most <= 2


@pytest.mark.parametrize(
    ("sizes", "place"),
    [
        ([(64, 48)], (0, 48, 14, 50)),  # portrait in landscape: 48 high and 36 wide
        ([(24, 64)], (12, 36, 0, 64)),
        ([(96, 128)], (0, 48, 0, 64)),  # of the same shape
        ([(95, 128)], (0, 48, 0, 64)),
    ],
)
def test_a_frame_of_another_shape_is_not_squeezed(sizes, place, tmp_path):
    path = change_size(tmp_path / "video.mjpg", (48, 64), *sizes)
    frames = read_frames(path)
    assert frames.shape[-2:] == (48, 64)
    top, bottom, left, right = place
    inside = torch.zeros(48, 64, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert frames[0].min() > 100
    assert frames[-1][:, inside].min() > 100
    assert (frames[-1][:, ~inside] == 0).all()


def test_an_avi_that_drops_frames_is_whole(tmp_path):
    times = [0, 1, 2, 6, 7, 12]
    path = make_video(tmp_path / "video.avi", num_frames=6, times=times, codec="mpeg4")
    assert levels(read_frames(path)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_truncated_file_never_reads_as_a_shorter_or_other_video(share, suffix, tmp_path):
    """Whatever is missing: an error that names the file, or frames as they were (of an mkv, without the last few)."""
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    options = {"container": {"movflags": "faststart"}} if suffix == ".mp4" else {}
    path = make_video(tmp_path / f"video{suffix}", num_frames=24, codec=codec, **options)
    whole = read_frames(path)
    cut(path, share)
    with contextlib.suppress(InputError):
        info = probe(path)
        video = read_frames(info)
        assert suffix == ".mkv" or info.num_frames == 24
        assert info.num_frames >= 20  # the last frames in the file are not the last in time
        assert torch.equal(video, whole[(info.timestamps * 10).round()])


# where the corner at the top left of a frame is shown, by the matrix (a, b, c, d), and whether rows become columns
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), "top left", False),
    "turned clockwise": ((0, 1, -1, 0), "top right", True),
    "turned by half": ((-1, 0, 0, -1), "bottom right", False),
    "turned anticlockwise": ((0, -1, 1, 0), "bottom left", True),
    "mirrored": ((-1, 0, 0, 1), "top right", False),
    "flipped": ((1, 0, 0, -1), "bottom left", False),
    "transposed": ((0, 1, 1, 0), "top left", True),
    "transposed the other way": ((0, -1, -1, 0), "bottom right", True),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_frame_is_shown_as_by_a_player(name, tmp_path):
    matrix, place, is_exchanged = ORIENTATIONS[name]
    path = display_matrix(make_video(tmp_path / "video.mp4", num_frames=3), *matrix)
    info, video = probe(path), read_frames(path)
    assert corner(video[0]) == place
    assert (info.height, info.width) == tuple(video.shape[-2:]) == ((64, 48) if is_exchanged else (48, 64))


def test_another_angle_is_refused(tmp_path):
    path = display_matrix(make_video(tmp_path / "video.mp4", num_frames=3), 1, 1, -1, 1)
    with pytest.raises(InputError, match="no multiple of 90 degrees"):
        probe(path)


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(3), 192), (Fraction(1, 2), 32), (Fraction(1), 64)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_square(aspect, width, turned, tmp_path):
    path = make_video(tmp_path / "video.mp4", num_frames=3, aspect=aspect)
    if turned:
        rotate(path, 90)
    info, video = probe(path), read_frames(path)
    assert tuple(video.shape[-2:]) == (info.height, info.width) == ((width, 48) if turned else (48, width))
    assert levels(video) == [0, 1, 2]


def test_absurd_pixels_are_refused(tmp_path):
    with pytest.raises(InputError, match="sample aspect ratio is wrong"):
        probe(make_video(tmp_path / "video.mp4", num_frames=1, size=(16, 2048), aspect=Fraction(16)))


@pytest.mark.parametrize(("start", "num_frames"), [(0, 12), (10, 15), (0, 22), (7, 23), (29, 1)])
def test_an_edit_list_trims_and_is_no_truncation(start, num_frames, tmp_path):
    path = trim(make_video(tmp_path / "video.mp4", num_frames=30), start, num_frames)
    assert levels(read_frames(path)) == list(range(start, start + num_frames))
    cut(make_video(path, num_frames=30, container={"movflags": "faststart"}), 0.8)
    with pytest.raises(InputError, match="is truncated"):
        probe(trim(path, start, num_frames))


def test_what_decodes_of_joined_streams_is_used_and_said(tmp_path, caplog):
    one = make_video(tmp_path / "one.ts", num_frames=25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * one.read_bytes())
    assert levels(read_frames(joined)) == 2 * levels(read_frames(one))
    assert "1 of 50 packets are damaged; what decodes is used" in caplog.text


def test_titles_may_be_in_any_encoding(tmp_path):
    path = make_video(tmp_path / "video.mp4", num_frames=3, title="Sc?ne d'ete")
    path.write_bytes(path.read_bytes().replace(b"Sc?ne", b"Sc\xe8ne"))
    assert levels(read_frames(path)) == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"bf": "0"}, {"bf": "8", "b-pyramid": "none"}], ids=str)
def test_any_frames_are_those_of_the_whole_video(tmp_path, options):
    """Frames that nothing refers to are not decoded where they are not asked for."""
    path = make_video(tmp_path / "video.mp4", num_frames=30, x264=options)
    whole = read_frames(path)
    for count in (1, 2, 5, 12):
        chosen = torch.randperm(30, generator=torch.Generator().manual_seed(count))[:count].tolist()
        assert torch.equal(read_frames(path, chosen), whole[chosen])
    assert all(torch.equal(read_frames(path, [i]), whole[[i]]) for i in range(30))
