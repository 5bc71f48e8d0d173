"""Backbones by name, and their weights from files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from fe_adapter import VideoClassifier
from fe_adapter.backbones import Preprocessing, build_backbone, describe_backbone
from fe_adapter.backbones.describe import LIBRARIES
from fe_adapter.errors import InputError
from tests.models.test_classifier import ARGS, NAME, classifier, video
from tests.vits import build


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


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"version https://git-lfs.github.com/spec/v1\n", b"\x89HDF\r\n\x1a\n"]
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
def test_what_is_no_weights_file_is_said(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read: it is neither a safetensors nor a torch\.save file"):
        build_backbone(NAME, tmp_path / name, ARGS)


def test_weights_files_are_known_by_what_is_in_them(tmp_path):
    state = backbone(NAME).state_dict()
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        loaded = build_backbone(NAME, tmp_path / name, ARGS).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


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


PREPROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3,
    "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
}  # fmt: skip
EXPECTED = Preprocessing((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.8)


def test_a_local_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
    )
    vit = transformers.ViTModel(config)
    vit.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model = VideoClassifier.from_name("hf:owner/vit", 2, weights=tmp_path, num_frames=2)
    assert model.preprocessing == EXPECTED
    assert torch.equal(model.vit.layernorm.weight, vit.layernorm.weight)


HF = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}
TORCHVISION = "torchvision:vit_b_16"


def backbone(name, **args):
    pytest.importorskip({"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0]))
    own = {"timm": ARGS, "hf": {**HF, "image_size": 32}, "torchvision": {"image_size": 32}}[name.partition(":")[0]]
    return build_backbone(name, None, own | args)


def renamed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def compiled(state):
    return {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in state.items()}


def with_head(**tensors):
    def change(state):
        return {**state, **{name.replace("__", "."): torch.zeros(shape) for name, shape in tensors.items()}}

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (NAME, lambda state: state, None),
        (NAME, renamed("module."), None),
        (NAME, renamed("_orig_mod."), None),
        (NAME, compiled, None),
        (NAME, renamed("model."), None),
        (NAME, renamed("module.model.vit."), None),
        (NAME, with_head(head__weight=(7, 24), head__bias=(7,)), "head.bias, head.weight are left out"),
        (
            NAME,
            with_head(head__weight=(7, 24), head_dist__weight=(7, 24)),
            "head.weight, head_dist.weight are left out",
        ),
        (NAME, lambda s: with_head(classifier__weight=(7, 24))(renamed("vit.")(s)), "classifier.weight is left out"),
        (
            "hf:vit",
            lambda s: with_head(classifier__weight=(7, 24))(renamed("vit.")(s)),
            "classifier.weight is left out",
        ),
        (TORCHVISION, with_head(heads__head__weight=(7, 768), heads__head__bias=(7,)), "heads.head.bias, heads.head.w"),
    ],
)
def test_weights_that_are_right_load_whatever_is_around_them(name, change, said, tmp_path, caplog):
    source = backbone(name)
    torch.save(change(source.state_dict()), tmp_path / "weights.pth")
    caplog.clear()
    args = {"timm": ARGS, "hf": {**HF, "image_size": 32}, "torchvision": {"image_size": 32}}[name.partition(":")[0]]
    loaded = build_backbone(name, tmp_path / "weights.pth", args).state_dict()
    for key, value in source.state_dict().items():
        assert key.startswith("heads.") or torch.equal(loaded[key], value), key
    assert caplog.text == "" if said is None else said in caplog.text


@pytest.mark.parametrize(
    ("name", "size", "key"),
    [
        (NAME, "img_size", "pos_embed"),
        ("hf:vit", "image_size", "embeddings.position_embeddings"),
        (TORCHVISION, "image_size", "encoder.pos_embedding"),
    ],
)
def test_position_embeddings_are_resampled_by_the_librarys_rule(name, size, key, tmp_path, caplog):
    source = backbone(name, **{size: 48})
    positions = source.state_dict()[key]
    side = round((positions.shape[1] - 1) ** 0.5)
    rows = torch.arange(side).repeat_interleave(side)[:, None]  # a slope, which any rule keeps
    positions[:, 1:] = rows * torch.randn(positions.shape[-1], generator=torch.Generator().manual_seed(0))
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    args = {"timm": ARGS, "hf": {**HF, "image_size": 32}, "torchvision": {"image_size": 32}}[name.partition(":")[0]]
    loaded = build_backbone(name, path, args).state_dict()
    old, new = source.state_dict()[key], loaded[key]
    assert f"{key} is resampled from {tuple(old.shape)} to {tuple(new.shape)}" in caplog.text
    assert torch.equal(new[:, 0], old[:, 0])  # the class token's
    side = round((new.shape[1] - 1) ** 0.5)
    slopes = new[0, 1:].unflatten(0, (side, side)).diff(dim=0)
    assert torch.corrcoef(torch.stack([slopes.mean((0, 1)), old[0, 1 + 2 * 3]]))[0, 1] > 0.999
    assert new[0, 1:].unflatten(0, (side, side)).diff(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "blocks.7.norm1.weight": torch.zeros(24)}, "has besides blocks.7.norm1.weight"),
        (lambda s: {**s, "reg_token": torch.zeros(1, 4, 24)}, "has besides reg_token"),
        (lambda s: {**s, "fc_norm.weight": torch.zeros(24)}, "has besides fc_norm.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "norm.weight"}, "lacks norm.weight"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 17, 32)}, r"pos_embed is \(1, 17, 32\), not \(1, 17, 24\)"),
    ],
)
def test_weights_of_another_model_are_refused(change, message, tmp_path):
    torch.save(change(backbone(NAME).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"are of another model: .*{message}"):
        build_backbone(NAME, tmp_path / "weights.pth", ARGS)


SCRIPT = """
from fe_adapter import VideoClassifier
for name in ("owner/vit", "owner/silent"):
    print(VideoClassifier.from_name("hf:" + name, 2, num_frames=2).preprocessing)
"""


def test_preprocessing_is_that_of_the_weights_in_a_hubs_cache(tmp_path):
    """By name, without a network; a model whose config is not there is said to be a guess."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**HF, image_size=32)
    for name in ("vit", "silent"):
        place = tmp_path / "hub" / f"models--owner--{name}"
        snapshot = place / "snapshots" / ("0" * 40)
        transformers.ViTModel(config).save_pretrained(snapshot)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)
        if name == "vit":
            (snapshot / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, guessed = done.stdout.splitlines()
    assert own == repr(EXPECTED)
    assert "mean=(0.5, 0.5, 0.5)" in guessed
    assert done.stderr.count("which is a guess") == 1
    assert "hf:owner/silent has no preprocessor_config.json" in done.stderr


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 1 / 127.5}, (0.05, 0.1, 0.15), (0.2, 0.25, 0.3)),
        ({"do_rescale": False}, (0.1 / 255, 0.2 / 255, 0.3 / 255), (0.4 / 255, 0.5 / 255, 0.6 / 255)),
    ],
)
def test_rescaling_is_part_of_mean_and_std(changes, mean, std, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig(**HF, image_size=32)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | changes))
    found = describe_backbone(build_backbone("hf:owner/vit", tmp_path, {})).preprocessing
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_std": [0, 1, 1]}, {"image_std": [1]}, {"image_std": ["a", "b", "c"]}, {"image_mean": None},
        {"rescale_factor": 0}, {"rescale_factor": "x"}, {"resample": [3]}, {"size": 0}, {"size": -5},
        {"do_flip_channel_order": True},
    ],
)  # fmt: skip
def test_a_preprocessor_config_that_cannot_be_is_refused_by_name(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig(**HF, image_size=32)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | changes))
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not say how images are prepared: "):
        build_backbone("hf:owner/vit", tmp_path, {})


def test_timm_and_torchvision_say_how_their_weights_see_images():
    assert describe_backbone(build_backbone("timm:vit_tiny_patch16_224", None, {})).preprocessing == Preprocessing(
        (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.9
    )
    pytest.importorskip("torchvision")
    found = describe_backbone(build_backbone(TORCHVISION, None, {"image_size": 32})).preprocessing
    assert (found.interpolation, found.crop) == ("bilinear", 224 / 256)


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (lambda own, other: {"model": own, "model_ema": other, "epoch": 3}, "hold model, model_ema, of which model is"),
        (lambda own, other: {"state_dict_ema": other, "state_dict": own}, "of which state_dict is taken"),
        (
            lambda own, other: {
                "student": renamed("module.backbone.")(other), "teacher": renamed("backbone.")(own), "dino_loss": {},
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []},
            },
            "hold student, teacher, of which teacher is taken",
        ),
        (lambda own, other: {"teacher": renamed("backbone.")(own)}, None),
        (
            lambda own, other: {**renamed("student.backbone.")(other), **renamed("teacher.backbone.")(own)},
            "student.backbone.blocks.0.attn.proj.bias",
        ),
        (lambda own, other: {**renamed("ema.")(other), **renamed("model.")(own)}, "ema.blocks.0.attn.proj.bias"),
        (lambda own, other: renamed("student.")(own), None),
        (lambda own, other: {"net": own, "epoch": 3}, None),
        (lambda own, other: {"checkpoint": {"model": own, "ema": other}}, "of which checkpoint.model is taken"),
    ],
)  # fmt: skip
def test_which_of_several_models_in_a_file_is_taken_is_said(wrapped, said, tmp_path, caplog):
    own, other = (backbone(NAME).state_dict() for _ in range(2))
    torch.save(wrapped(own, other), tmp_path / "weights.pth")
    caplog.clear()
    loaded = build_backbone(NAME, tmp_path / "weights.pth", ARGS).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.items())
    assert caplog.text == "" if said is None else said in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"encoder": {"a": torch.zeros(1)}, "predictor": {"a": torch.zeros(1)}}, "several models, encoder, predictor"),
        ({"optimizer": {"state": {0: {"a": torch.zeros(1)}}}}, "are no dictionary of tensors"),
        ({"a": torch.zeros(1), "epoch": 3}, "are no dictionary of tensors"),
        ({}, "are no dictionary of tensors"),
        ([torch.zeros(1)], "are no dictionary of tensors"),
    ],
)
def test_a_file_without_one_model_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        build_backbone(NAME, tmp_path / "weights.pth", ARGS)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("name", "weights", "asks"),
    [(NAME, "pretrained", True), (NAME, None, False), ("timm:hf_hub:owner/vit", None, True),
     ("openclip:ViT-B-16/openai", "pretrained", True), ("hf:owner/vit", None, True), ("hf:vit", None, False)],
)  # fmt: skip
def test_the_hub_is_asked_once_and_then_left_alone(name, weights, asks, answers, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked, modes = [], []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            if not answers:
                raise OSError("Name or service not known")

    def build(*args):
        modes.append(hub.constants.HF_HUB_OFFLINE)
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s [Retry 4/5].")
        raise OSError("cannot find it in the cache")

    library = next(library for library in LIBRARIES if name.startswith(library.NAME))
    monkeypatch.setattr(library, "build", build)
    monkeypatch.setattr(hub.utils, "get_session", Session)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="cannot find it in the cache"):
        build_backbone(name, weights, {})
    assert asked == ([(hub.constants.ENDPOINT, hub.constants.HF_HUB_ETAG_TIMEOUT)] if asks else [])
    assert modes == [asks and not answers]
    assert not hub.constants.HF_HUB_OFFLINE


def test_without_a_network_one_line_names_the_way_out(monkeypatch, caplog):
    import timm

    def create(*args, **options):
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s [Retry 4/5].")
        raise OSError("cannot reach the hub\nmore of it")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match=r"cannot reach the hub; without a network, .*--weights FILE") as caught:
        build_backbone(NAME, "pretrained", {})
    assert "\n" not in str(caught.value)
    assert not caplog.text


@pytest.mark.filterwarnings("ignore")  # of sparse tensors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * float("nan"), "is no dense tensor of finite real numbers"),
        (lambda t: t.to(torch.complex64), "is no dense tensor of finite real numbers"),
        (lambda t: t.to_sparse(), "is no dense tensor of finite real numbers"),
        (lambda t: t.to("meta"), "is no dense tensor of finite real numbers"),
        (lambda t: t.double() * 1e300, "holds values beyond torch.float32"),
        (lambda t: t.to(torch.int8), "is torch.int8, without what it was scaled by"),
    ],
)
def test_weights_that_are_no_real_numbers_are_refused(change, message, tmp_path):
    torch.save({name: change(t) for name, t in backbone(NAME).state_dict().items()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        build_backbone(NAME, tmp_path / "weights.pth", ARGS)
