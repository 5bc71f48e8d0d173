"""`VideoClassifier`: what it computes, what trains, how it is built, and its adapter folders."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fe_adapter import (
    FEAdapterConfig,
    VideoClassifier,
    apply_memory_policy,
    load_adapter,
    load_classifier,
    save_adapter,
)
from fe_adapter.errors import InputError
from fe_adapter.models import adapt
from fe_adapter.models.adapt import get_adapters
from fe_adapter.sharing.st_adapter import load_st_adapter
from tests.models import BACKBONES, build, size

NAME = "timm:vit_tiny_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
CONFIG = FEAdapterConfig(bottleneck=4)


def classifier(tune: str = "adapter", **options) -> VideoClassifier:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"class_names": ["sad", "happy", "calm"], "num_frames": 2, "tune": tune, **options}
    if tune == "adapter":
        options = {"config": CONFIG, **options}
    model = VideoClassifier.from_name(NAME, weights="none", backbone_args=ARGS, **options)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    return model.eval()


def video(T: int = 2, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (2, T, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_classifies(name):
    torch.manual_seed(0)
    model = VideoClassifier(build(name), 3, config=FEAdapterConfig(bottleneck=4), num_frames=2)
    clip = torch.randint(0, 256, (2, 2, 3, *size(name)), dtype=torch.uint8)
    logits = model(clip)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model(clip / 255), logits)
    logits.sum().backward()
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None} == {"vit", "head"}


def test_the_frame_feature_is_the_class_token_after_the_norm():
    model = classifier(tune="head")
    clip = video()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    images = (clip.flatten(0, 1) / 255 - mean) / std
    features = model.vit.forward_features(images)[:, 0].view(2, 2, 24)
    torch.testing.assert_close(model(clip), model.head(features.mean(1)))
    order = classifier(tune="full", temporal_pool="concat")
    assert order.head.in_features == 48
    assert not torch.allclose(order(clip), order(clip.flip(1)))
    torch.testing.assert_close(model(clip), model(clip.flip(1)))


def test_what_trains():
    parts = {"adapter": {"fe_adapter", "head"}, "head": {"head"}, "full": {"vit", "head"}}
    for tune, expected in parts.items():
        model = classifier(tune).train()
        trained = [key for key, p in model.named_parameters() if p.requires_grad]
        kinds = {"fe_adapter" if "fe_adapter" in key else key.split(".")[0] for key in trained}
        assert kinds == expected
        assert model.vit.blocks[0].training == (tune == "full")


def test_other_numbers_of_frames_and_copies():
    model = classifier()
    longer = model(video(T=5))
    assert [adapter.num_frames for adapter in get_adapters(model)] == [5, 5]
    short = model(video())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(video()), short)
        assert torch.equal(twin(video(T=5)), longer)


def test_resize_is_asked_for():
    clip = torch.zeros(1, 2, 3, 40, 32, dtype=torch.uint8)
    with pytest.raises(InputError, match="takes frames of 32x32; got 40x32"):
        classifier()(clip)
    assert classifier(resize=True)(clip).shape == (1, 3)


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 32), InputError, r"a video is \(B, T, 3, h, w\); got \(2, 3, 32, 32\)"),
        (torch.zeros(2, 3, 2, 32, 32), InputError, "a video is"),
        (torch.zeros(2, 2, 3, 32, 32, dtype=torch.long), TypeError, "uint8, or float"),
    ],
)
def test_bad_videos_are_refused(clip, error, message):
    with pytest.raises(error, match=message):
        classifier()(clip)


def test_bad_arguments_are_refused():
    vit = build("timm vit")
    cases = [
        ({"num_frames": 2}, "give num_classes or class_names"),
        ({"num_classes": 2, "class_names": ["a"], "num_frames": 2}, "num_classes=2, but there are 1"),
        ({"class_names": ["a", "a"], "num_frames": 2}, "must be a list of different names"),
        ({"num_classes": 2}, "give num_frames"),
        ({"num_classes": 2, "num_frames": 2, "tune": "some"}, "'some' is not one of"),
        ({"num_classes": 2, "num_frames": 2, "tune": "head", "config": CONFIG}, "tune='head' uses no adapters"),
        ({"num_classes": 2, "num_frames": 2, "head_dropout": 1.0}, "outside"),
        ({"num_classes": 2, "num_frames": 1, "tune": "full", "temporal_pool": "concat"}, "at least two frames"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            VideoClassifier(copy.deepcopy(vit), **arguments)


def test_bad_names_and_weights_are_refused(tmp_path):
    junk = tmp_path / "weights.safetensors"
    junk.write_bytes(b"junk")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    empty = tmp_path / "empty.pth"
    empty.touch()
    unsafe = tmp_path / "unsafe.pth"
    torch.save({"model": build("timm vit")}, unsafe)
    cases = [
        ("resnet", None, "is none of timm:NAME"),
        ("timm:vit_tiny_patch16_225", None, "close to it are vit_tiny_patch16_224"),
        ("torchvision:vit_typo", None, "torchvision has no model"),
        ("openclip:ViT-typo", None, "open_clip has no model"),
        ("openclip:ViT-B-16", "pretrained", "names no pretrained weights"),
        ("hf:no-such-type", None, "cannot build hf:no-such-type"),
        (NAME, tmp_path / "none.safetensors", "no such file or folder"),
        (NAME, junk, "weights .* cannot be read"),
        (NAME, empty, "weights .*empty.pth cannot be read"),
        (NAME, other, "are of another model: the file lacks .* and has besides weight"),
        (NAME, unsafe, "hold more than tensors and are not read"),
    ]
    for name, weights, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            VideoClassifier.from_name(name, 2, weights=weights, num_frames=2)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_weights_files(tmp_path, suffix):
    model = classifier(tune="head")
    path = tmp_path / f"vit.{suffix}"
    state = {**model.vit.state_dict(), "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    save_file(state, path) if suffix == "safetensors" else torch.save({"model": state}, path)
    built = VideoClassifier.from_name(NAME, 3, weights=path, backbone_args=ARGS, num_frames=2)
    assert all(torch.equal(p, state[key]) for key, p in built.vit.state_dict().items() if "fe_adapter" not in key)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("hf:vit", {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}),
        ("torchvision:vit_b_16", {"image_size": 32}),
    ],
)
def test_names_of_other_libraries(name, args):
    pytest.importorskip("transformers" if name.startswith("hf") else "torchvision")
    model = VideoClassifier.from_name(name, 2, weights=None, backbone_args=args, num_frames=1, resize=True)
    assert model(video(T=1)).shape == (2, 2)


def test_a_local_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
    )
    vit = transformers.ViTModel(config)
    vit.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    model = VideoClassifier.from_name("hf:owner/vit", 2, weights=tmp_path, num_frames=2)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert torch.equal(model.vit.layernorm.weight, vit.layernorm.weight)


@pytest.mark.parametrize("options", [{}, {"tune": "head"}, {"tune": "full", "temporal_pool": "concat"}])
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


class Full(io.BufferedWriter):
    """A file on a full disk."""

    def write(self, content):
        raise OSError(28, "No space left on device")


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


def st_adapter_checkpoint(positions=("attn", "mlp"), D=48, R=6):
    torch.manual_seed(3)
    state = {"fc.weight": torch.randn(5, D), "fc.bias": torch.randn(5)}
    for block in range(2):
        for position in positions:
            prefix = f"transformer.resblocks.{block}.adapter_pre_{position}"
            shapes = {"fc1": (R, D), "conv": (R, 1, 3, 1, 1), "fc2": (D, R)}
            for stage, shape in shapes.items():
                state[f"{prefix}.{stage}.weight"] = torch.randn(shape)
                state[f"{prefix}.{stage}.bias"] = torch.randn(shape[0])
    return state


def test_st_adapter_checkpoints_load(tmp_path):
    state = st_adapter_checkpoint()
    torch.save({"model": state, "optimizer": {}, "next_epoch": 3}, tmp_path / "checkpoint-3.pth")
    vit = build("timm clip")
    head = load_st_adapter(vit, tmp_path / "checkpoint-3.pth", num_frames=2)
    assert torch.equal(head["weight"], state["fc.weight"])
    adapter = vit.blocks[1].fe_adapter_mlp
    assert (adapter.dilation, adapter.bottleneck) == (1, 6)
    prefix = "transformer.resblocks.1.adapter_pre_mlp"
    assert torch.equal(adapter.temporal_conv.weight, state[f"{prefix}.conv.weight"])
    assert torch.equal(adapter.up_proj.bias, state[f"{prefix}.fc2.bias"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(1)}, "holds no whole ST-Adapter"),
        (st_adapter_checkpoint(D=32), "does not fit this backbone: size mismatch"),
    ],
)
def test_foreign_st_adapter_checkpoints_are_refused(tmp_path, state, message):
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    vit = build("timm clip")
    with pytest.raises(InputError, match=message):
        load_st_adapter(vit, tmp_path / "checkpoint.pth", num_frames=2)
    assert not hasattr(vit, "fe_adaptation")
