"""Adapter folders: what is saved loads again, bit for bit, or is refused in one line."""

from __future__ import annotations

import copy
import functools
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fe_adapter import (
    FEAdapterConfig,
    VideoClassifier,
    adapt,
    apply_memory_policy,
    load_adapter,
    load_classifier,
    save_adapter,
)
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adaptation, get_adapters
from tests.models.test_classifier import ARGS, CONFIG, NAME, Full, classifier, video
from tests.vits import build

NAN = math.nan


@pytest.mark.parametrize("options", [
    {}, {"tune": "head"}, {"tune": "full", "temporal_pool": "concat"}, {"tune": "head", "temporal_pool": "attention"},
    {"temporal_pool": "attention"},
])  # fmt: skip
def test_folders_round_trip(tmp_path, options):
    model = classifier(**options)
    if model.tune != "full":  # a frozen backbone's weights are its user's to keep
        model.backbone_weights = str(tmp_path / "vit.safetensors")
        state = {key: t for key, t in model.vit.state_dict().items() if "fe_adapter" not in key}
        save_file(state, model.backbone_weights)
    model.clip_seconds = 1.5
    save_adapter(model, tmp_path / "run")
    loaded = load_classifier(tmp_path / "run")
    assert torch.equal(loaded(video()), model(video()))
    assert loaded.class_names == ("sad", "happy", "calm")
    assert loaded.clip_seconds == 1.5
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """An adapted backbone, the plain one, and its folder."""
    plain = build("timm vit")
    vit = adapt(copy.deepcopy(plain), CONFIG, num_frames=2)
    for p in vit.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    save_adapter(vit, tmp_path / "adapter")
    return vit, plain, tmp_path / "adapter"


def test_adapters_alone_round_trip(saved):
    vit, plain, folder = saved
    loaded = load_adapter(plain, folder)
    assert loaded is plain
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images), vit(images))
    assert set(load_file(folder / "adapter_model.safetensors")) == {
        f"vit.{key}" for key in vit.state_dict() if "fe_adapter" in key
    }
    with pytest.raises(InputError, match="holds adapters without a classifier"):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("dilation", "kernel_size"), [((1, 2), 3), ((2, 1, 2), (3, 3, 3)), (((1, 2, 2), 2), (3, 3, 3))], ids=str
)
def test_dilations_of_blocks_and_of_the_grid_round_trip(tmp_path, dilation, kernel_size):
    plain = build("timm vit")
    config = FEAdapterConfig(bottleneck=4, dilation=dilation, kernel_size=kernel_size)
    vit = adapt(copy.deepcopy(plain), config, num_frames=2)
    for adapter in get_adapters(vit):
        for p in adapter.parameters():
            nn.init.normal_(p)
    save_adapter(vit, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_adapter(plain, tmp_path)(images), vit(images))
    assert get_adaptation(plain).config == config


def test_a_folder_whose_dilation_does_not_fit_is_refused(saved):
    _, plain, folder = saved
    adapter = json.loads((folder / "adapter_config.json").read_text())["adapter"]
    for dilation, message in (([1, 2, 4], "names 3 blocks, but 2 are adapted"), ([1, [0, 1, 1]], "=0 is too small")):
        edit_config(folder, adapter=adapter | {"dilation": dilation, "max_dilation": None})
        with pytest.raises(InputError, match=message):
            load_adapter(copy.deepcopy(plain), folder)
    assert not hasattr(plain, "fe_adaptation")


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST = "vit.blocks.0.fe_adapter.down_proj.weight"
DAMAGE = {
    "missing key": (lambda f: edit_tensors(f, lambda t: t.pop(FIRST)), "lacks 1 of 16 tensors: .*down_proj.weight"),
    "extra key": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(1))), "has 1 tensors .* no place for: x"),
    "wrong shape": (
        lambda f: edit_tensors(f, lambda t: t.update({FIRST: torch.zeros(3, 48)})),
        r"down_proj.weight has shape \(3, 48\), the model needs \(4, 48\)",
    ),
    "truncated": (
        lambda f: os.truncate(f / "adapter_model.safetensors", 600),
        "adapter_model.safetensors is truncated or no safetensors file",
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "cannot read .*adapter_model.safetensors"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "cannot read .*adapter_config.json"),
    "torn config": (lambda f: os.truncate(f / "adapter_config.json", 50), "is no whole JSON file"),
    "newer": (lambda f: edit_config(f, format_version=99), "format version 99, this release reads up to 1; update"),
    "no version": (lambda f: edit_config(f, format_version=None), "does not say its format_version"),
    "unknown option": (lambda f: edit_config(f, adapter={"rank": 3}), "adapter_config.json is damaged"),
    "not adapters": (lambda f: edit_config(f, adapter={"dilation": 0}), "dilation=0 is too small"),
    "text for a number": (
        lambda f: edit_config(f, num_frames="4"),
        "adapter_config.json is damaged: num_frames is '4'",
    ),
    "no number": (lambda f: edit_config(f, num_frames=None), "adapter_config.json is damaged"),
    "version 0": (lambda f: edit_config(f, format_version=0), "does not say its format_version"),
    "integers": (
        lambda f: edit_tensors(f, lambda t: t.update({FIRST: torch.zeros(4, 48, dtype=torch.int64)})),
        "is torch.int64; it must be floating point",
    ),
    "other width": (lambda f: edit_config(f, embed_dim=64), "another backbone: width 64, this one has 48"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused_in_one_line(saved, damage):
    _, plain, folder = saved
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_adapter(plain, folder)
    assert "\n" not in str(caught.value)
    assert not hasattr(plain, "fe_adaptation")  # as it came
    assert all(p.requires_grad for p in plain.parameters())


def test_another_backbone_is_refused(saved):
    vit, plain, folder = saved
    nn.init.normal_(plain.norm.weight)
    with pytest.raises(InputError, match="on another backbone, or on other weights of it"):
        load_adapter(plain, folder)
    load_adapter(plain, folder, strict=False)
    assert torch.equal(plain.blocks[0].fe_adapter.up_proj.weight, vit.blocks[0].fe_adapter.up_proj.weight)
    with pytest.raises(InputError, match="has other adapters than the model"):
        load_adapter(adapt(build("timm vit"), FEAdapterConfig(bottleneck=5), num_frames=2), folder)
    with pytest.raises(InputError, match="is no adapter folder"):
        load_adapter(plain, folder / "none")


@pytest.mark.parametrize("policy", ["int8", "nf4"])
def test_a_packed_backbone_of_random_weights_is_saved_unpacked(policy, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = apply_memory_policy(classifier(), policy)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_classifier(tmp_path)(video()), model(video()))


def test_a_classifier_without_a_name_asks_for_the_backbone(tmp_path):
    plain = build("timm vit")
    model = VideoClassifier(copy.deepcopy(plain), 2, config=CONFIG, num_frames=2).eval()
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="does not say which backbone it was trained on; pass it as vit"):
        load_classifier(tmp_path)
    assert torch.equal(load_classifier(tmp_path, vit=plain)(video()), model(video()))


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier": None}, {"classifier": {"class_names": 3}}, {"backbone": "x"}, {"backbone": {"name": "timm:x"}},
        {"backbone": {"name": NAME, "args": ARGS, "weights": 3}}, {"classifier": {"hat": 1}},
    ],
)  # fmt: skip
def test_damaged_descriptions_are_refused_in_one_line(tmp_path, changes):
    save_adapter(classifier(), tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        keeps = key == "classifier" and isinstance(value, dict)
        content[key] = {**content[key], **value} if keeps else value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"adapter_config\.json is damaged: "):
        load_classifier(tmp_path)


NOT_SANE = {
    "classifier.class_names": [["sad", ""], ["sad", 2], [], ["sad", "sad"], "sad"],
    "classifier.num_frames": [0, -1, 10**9, 2.0, True, "2"],
    "classifier.clip_seconds": [0, -1.5, NAN, math.inf, "1"],
    "classifier.head_dropout": [1, -0.1, NAN],
    "classifier.resize": [1, "no"],
    "classifier.preprocessing.size": [[0, 32], [32], [32, 10**9], [32.0, 32], 32],
    "classifier.preprocessing.mean": [[0.5, 0.5], [0.5, 0.5, NAN], [0.5, 0.5, math.inf], "0.5"],
    "classifier.preprocessing.std": [[0.5, 0.5, 0], [0.5, 0.5, -1], [0.5, 0.5, NAN], [1, 1, "1"]],
    "backbone.args.img_size": [0, -32, 10**9, [32, 10**9], NAN],
    "backbone.args.depth": [0, 10**9],
    "adapter.bottleneck": [0, 10**9, "4", NAN],
    "adapter.kernel_size": [10**9 + 1, [3, 3], "3"],
    "num_frames": [0, 10**9, NAN],
    "embed_dim": [0, -1, 10**9, 48.0],
    "num_prefix_tokens": [-1, 10**9, "1"],
    "backbone_fingerprint": [3, ""],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NOT_SANE.items() for value in values])
def test_what_no_model_has_is_refused_before_anything_is_built(tmp_path, field, value, monkeypatch):
    save_adapter(classifier(), tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    *above, last = field.split(".")
    part = functools.reduce(dict.__getitem__, above, content)
    part[last] = value
    path.write_text(json.dumps(content))
    monkeypatch.setattr("fe_adapter.models.classifier.build_backbone", None)
    with pytest.raises(InputError, match=r"adapter_config\.json is damaged: ") as caught:
        load_classifier(tmp_path)
    message = str(caught.value)
    assert last in message
    assert "\n" not in message
    assert len(message) < 400


def test_fields_of_a_later_release_do_not_matter(tmp_path):
    model = classifier()
    save_adapter(model, tmp_path)
    edit_config(
        tmp_path,
        note="mine",
        backbone={**json.loads((tmp_path / "adapter_config.json").read_text())["backbone"], "x": 1},
    )
    assert torch.equal(load_classifier(tmp_path)(video()), model(video()))


def test_random_weights_travel_in_the_folder(tmp_path):
    model = classifier()
    save_adapter(model, tmp_path)
    assert torch.equal(load_classifier(tmp_path)(video()), model(video()))
    with pytest.raises(InputError, match="holds the weights of the backbone itself; leave weights out"):
        load_classifier(tmp_path, weights="vit.safetensors")


def test_weights_that_moved_are_asked_for(tmp_path):
    model = classifier()
    model.backbone_weights = str(tmp_path / "gone.safetensors")
    save_adapter(model, tmp_path / "run")
    with pytest.raises(InputError, match=r"were at .*gone\.safetensors and are not any more; pass weights"):
        load_classifier(tmp_path / "run")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_previous_folder(saved, monkeypatch, call):
    vit, plain, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    nn.init.zeros_(vit.blocks[0].fe_adapter.up_proj.weight)

    def full(*args):
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        real = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(real(handle, mode, buffering=0)))
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        save_adapter(vit, folder)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    load_adapter(plain, folder)


def test_an_unwritable_folder_is_refused(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        save_adapter(saved[0], tmp_path / "file" / "adapter")
    with pytest.raises(InputError, match="has no adapters"):
        save_adapter(nn.Linear(2, 2), tmp_path / "x")
