"""What leaves PyTorch computes what it computed there."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from fe_adapter import (
    FEAdapterConfig,
    VideoClassifier,
    add_adapter,
    apply_memory_policy,
    save_adapter,
    set_adapter,
    use_adapters,
)
from fe_adapter.cli import app as cli
from fe_adapter.errors import InputError
from fe_adapter.sharing import export
from fe_adapter.sharing.export import export_onnx
from tests.models.test_classifier import classifier
from tests.vits import build, size


def settled(name, **config):
    """A classifier whose adapters are no longer the identity."""
    torch.manual_seed(0)
    config = FEAdapterConfig(bottleneck=4, **config)
    model = VideoClassifier(build(name), class_names=["a", "b", "c"], config=config, num_frames=4).eval()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    model.temperature = 2.0
    return model


@pytest.mark.parametrize("dilation", [1, "dynamic"])
@pytest.mark.parametrize("name", ["timm vit", "hf vit", "torchvision", "open_clip"])
def test_torch_export_takes_any_batch(name, dilation):
    model = settled(name, dilation=dilation)
    clips = torch.randint(0, 256, (5, 4, 3, 32, 32), dtype=torch.uint8)
    shapes = {"video": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(model, (clips[:2],), dynamic_shapes=shapes).module()
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(exported(clips[:batch_size]), model(clips[:batch_size]))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("timm vit", {"dilation": "dynamic", "max_dilation": 2.0}),
        ("hf vit", {"dilation": 2, "causal": True, "positions": ("attn", "mlp"), "activation": "gelu"}),
        ("torchvision", {"dilation": 1, "blocks": (1,)}),
    ],
)
def test_onnx_gives_the_same_logits(tmp_path, name, config):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = settled(name, **config)
    if name == "torchvision":  # of several adapters the active one; and what a policy does is for training alone
        set_adapter(add_adapter(model, "other", class_names=["x", "y"]), "other")
        nn.init.normal_(model.head.weight)
        set_adapter(model, "default")
        apply_memory_policy(model, "full+gelu2bit")
    before = [type(module) for module in model.modules()]
    export_onnx(model, tmp_path / "out" / "model.onnx")
    assert [type(module) for module in model.modules()] == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    clips = torch.randint(0, 256, (5, 4, 3, *size(name)), dtype=torch.uint8)
    logits, probabilities = map(torch.from_numpy, session.run(None, {"video": clips.numpy()}))
    expected = model(clips).detach()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, (expected / 2).softmax(-1), rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["fe_adapter.class_names"]) == ["a", "b", "c"]
    assert json.loads(about["fe_adapter.num_frames"]) == 4


def test_a_file_that_gives_other_logits_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = classifier()

    class Program:
        def __init__(self):
            self.model = types.SimpleNamespace(metadata_props={})

        def save(self, path, **_):
            Path(path).write_bytes(b"x")

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, given):
            return [model(torch.from_numpy(given["video"])).detach().numpy() * 1.01]

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    with pytest.raises(InputError, match=r"gives other logits: off by 1\.0e-02 of the largest; not written"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    model = classifier()
    save_adapter(model, tmp_path / "run")
    for arguments, message in (
        ((model.vit, tmp_path / "x.onnx"), "what is exported is a VideoClassifier; got a VisionTransformer"),
        ((model, tmp_path / "x.pt"), r"x\.pt does not end in \.onnx"),
        ((model, tmp_path / "run" / "adapter_config.json" / "x.onnx"), "adapter_config.json"),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx(*arguments)
    with use_adapters(model, ["default"]), pytest.raises(InputError, match="have adapters of their own"):
        export_onnx(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match="opset"):
        export_onnx(model, tmp_path / "x.onnx", opset=3)
    for out, more, message in (
        ("x.bin", [], "ends neither in .onnx nor"),
        ("x.pth", ["--opset", "20"], "--opset is of .onnx"),
        ("x.pth", [], "ST-Adapter has dilation=1"),
        ("x.onnx", ["--opset", "99"], "opset"),
    ):
        assert cli.run(["export", str(tmp_path / "run"), str(tmp_path / out), *more]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(export, "require", lambda *_: (_ for _ in ()).throw(InputError("export needs onnx")))
    with pytest.raises(InputError, match="needs onnx"):
        export_onnx(model, tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_writes_both_kinds(tmp_path, monkeypatch):
    save_adapter(classifier(config=FEAdapterConfig(bottleneck=4, dilation=1)), tmp_path / "run")
    assert cli.run(["export", str(tmp_path / "run"), str(tmp_path / "checkpoint.safetensors")]) == 0
    assert (tmp_path / "checkpoint.safetensors").stat().st_size > 1000
    asked = []
    monkeypatch.setattr(export, "export_onnx", lambda model, path, opset: asked.append((path.name, opset)))
    assert cli.run(["export", str(tmp_path / "run"), str(tmp_path / "model.onnx"), "--opset", "20"]) == 0
    assert asked == [("model.onnx", 20)]
