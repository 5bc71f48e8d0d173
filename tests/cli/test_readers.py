"""Whatever a file holds, its reader takes it, or says in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fe_adapter.data.listing import clips_by_split
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.errors import InputError
from fe_adapter.files import read_as
from fe_adapter.sharing.schema import AdapterFolder
from fe_adapter.train.log import _drop_lines_after
from fe_adapter.train.state import read_metadata

pytest.importorskip("accelerate")
quick = settings(
    max_examples=150, deadline=2000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONFIG = {
    "format_version": 1, "num_frames": 4, "embed_dim": 24, "num_prefix_tokens": 1,
    "adapter": {"bottleneck": 12, "kernel_size": 3, "dilation": "dynamic", "positions": ["attn"], "blocks": None},
    "backbone": {"name": "timm:x", "args": {"depth": 2}, "weights": "none"},
    "classifier": {
        "class_names": ["a", "b"], "num_frames": 4, "tune": "adapter", "clip_seconds": 1.0,
        "preprocessing": {"size": [48, 48], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    },
}  # fmt: skip
METADATA = {
    "format": 1, "settings": {"seed": 0}, "scaler": None,
    "position": {
        "epoch": 1, "batch": 0, "step": 3, "loss_sum": 0.0, "clips_per_batch": 2,
        "history": [{"epoch": 0, "train_loss": 0.5, "uar": 0.5, "war": 0.5}],
    },
}  # fmt: skip
SETTINGS = {"num_frames": 4, "sampling": "stride", "stride": 2, "val_fraction": 0.2, "on_error": "fail", "flip": True}
RECORD = {"step": 1, "epoch": 0, "loss": 0.5, "train_loss": 0.5}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def like(draw, content):
    """``content`` with another value somewhere, as JSON; or any JSON; or any bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=50) | values.map(lambda value: json.dumps(value).encode()))
    whole = here = json.loads(json.dumps(content))
    while True:
        key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if not (isinstance(here[key], (dict, list)) and here[key] and draw(st.booleans())):
            break
        here = here[key]
    if isinstance(here, dict) and draw(st.integers(0, 4)) == 0:
        del here[key]
    else:
        here[key] = draw(values)
    return json.dumps(whole).encode()


@contextlib.contextmanager
def one_line():
    """An `InputError` of one line is an answer as well; nothing else is."""
    said = "nothing"
    try:
        yield
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


@quick
@given(like(CONFIG))
def test_adapter_config(tmp_path, content):
    (tmp_path / "adapter_config.json").write_bytes(content)
    with one_line():
        read_as(AdapterFolder, tmp_path / "adapter_config.json")


@quick
@given(like(SETTINGS))
def test_settings(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with one_line():
        read_as(ClipRecipe, tmp_path / "settings.json")


@quick
@given(like(METADATA))
def test_checkpoint_metadata(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(save({}, {"fe_adapter": content.decode(errors="replace")}))
    with one_line():
        position = read_metadata(tmp_path / "checkpoint").position
        assert position.epoch == len(position.history)


@quick
@given(st.lists(like(RECORD), max_size=4))
def test_log_lines(tmp_path, lines):
    good = json.dumps(RECORD).encode()
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([good, *lines, good]))
    with one_line():
        _drop_lines_after(tmp_path / "log.jsonl", 10, 10)
    kept = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert kept[0] == kept[-1] == good
    assert all({"step", "epoch"} <= set(json.loads(line)) for line in kept)


cells = st.sampled_from(["path", "label", "split", "v.mp4", "w.mp4", "a", "train", "", '"', "\0"]) | st.text(max_size=4)
tables = st.tuples(st.sampled_from(",;\t"), st.lists(st.lists(cells, max_size=4), max_size=4)).map(
    lambda table: "\n".join(table[0].join(row) for row in table[1]).encode(errors="replace")
)


@quick
@given(st.sampled_from([b"", b"path,label\n", b"path;label;split\n"]), tables | st.binary(max_size=40))
def test_csv(tmp_path, header, content):
    for name in ("v.mp4", "w.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_bytes(header + content)
    with one_line():
        by_split = clips_by_split(tmp_path / "list.csv")
        assert all(clip.class_name and clip.path for clips in by_split.values() for clip in clips)
