"""Backbones by name, and their weights from files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fe_adapter import VideoClassifier
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
