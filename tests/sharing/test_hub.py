"""Adapters on the hub: pushed to a stand-in, fetched from it, and every way in which that can fail."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from fe_adapter import load_adapter, load_classifier, save_adapter
from fe_adapter.cli import app as cli
from fe_adapter.errors import InputError
from fe_adapter.sharing.hub import local_folder, push
from tests.models.test_classifier import classifier, video
from tests.sharing.stand_in import running

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, with an empty cache beside it."""
    with running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{found.address}/{{{template}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        yield found


@pytest.fixture
def run(tmp_path):
    """What train left, and a test of it."""
    model = classifier()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    model.backbone_weights = "/home/somebody/secret/vit.safetensors"
    save_adapter(model, tmp_path / "run" / "best")
    metrics = {
        "model": "best", "uar": 0.5, "war": 0.625, "interval_uar": [0.4, 0.6], "interval_war": [0.5, 0.75],
        "num_clips": 8, "recall": {"sad": 0.25}, "views": "16x2x2", "select_on_test": True,
    }  # fmt: skip
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "metrics.json").write_text(json.dumps(metrics))
    return model, tmp_path / "run"


def test_what_is_pushed_is_what_is_loaded(hub, run, capsys):
    model, folder = run
    assert cli.run(["push", str(folder), "me/faces", "--private", "--license", "cc-by-nc-4.0"]) == 0
    assert "me/faces/commit/" in capsys.readouterr().err
    files = hub.files["me/faces"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "me/faces" in hub.private
    assert b"somebody" not in files["adapter_config.json"] + files["README.md"]
    loaded = load_classifier("hub:me/faces", vit=plain())
    assert torch.equal(loaded(video()), model(video()))
    hub.files["me/faces"].clear()  # what is in the cache is enough
    constants.ENDPOINT = "http://127.0.0.1:9"
    assert torch.equal(load_classifier("hub:me/faces", vit=plain())(video()), model(video()))
    assert load_adapter(plain(), "hub:me/faces").fe_adaptation.config == model.vit.fe_adaptation.config


def plain():
    """The backbone that `classifier` adapts."""
    from fe_adapter import unadapt

    return unadapt(classifier().vit)


def test_the_card_says_what_it_is(run, tmp_path):
    _, folder = run
    assert cli.run(["push", str(folder), "me/faces", "--dry-run", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---\n")[1]
    assert "library_name: fe-adapter" in front
    assert "license" not in front
    assert "value: 0.625" in front
    for words in (
        "# me/faces", "sad, happy, calm", "| UAR, the mean recall of the classes | 50.0 | 40.0 to 60.0 |",
        "| recall of sad | 25.0 | |", "16x2x2", "chosen on this very test split", "the author names no licence",
        "weights of one's own, `vit.safetensors`", "biometric data", "of the adapters", "whole frames",
    ):  # fmt: skip
        assert words in card, words
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["backbone"]["weights"] == "vit.safetensors"


@pytest.mark.parametrize("change", ["another model", "older"])
def test_figures_of_another_model_are_not_this_one_s(run, tmp_path, change):
    _, folder = run
    metrics = folder / "eval" / "metrics.json"
    if change == "older":
        os.utime(metrics, (1, 1))
    else:
        metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "model": "last"}))
    assert cli.run(["push", str(folder), "me/faces", "--dry-run", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not tested" in card
    assert "model-index" not in card


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hub:me", "'me' is no repository of the hub; expected hub:OWNER/NAME"),
        ("hub:me/x@", "'me/x@' is no repository of the hub"),
        ("hub:../x", "is no repository of the hub"),
        ("hub:me/absent", "hub:me/absent: .*"),
        ("hub:me/other", "hub:me/other holds no adapter folder: adapter_config.json is not in it"),
        ("hub:me/other@v9", "hub:me/other@v9: .*"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_line(hub, reference, message, capsys):
    hub.files["me/other"] = {"README.md": b"x"}
    with pytest.raises(InputError, match=message) as caught:
        local_folder(reference)
    assert "\n" not in str(caught.value)
    assert cli.run(["predict", reference, "clip.mp4"]) == 2


def test_an_answer_that_is_cut_off_leaves_nothing(hub, run, tmp_path):
    _, folder = run
    push(folder / "best", "me/faces")
    hub.cut = "adapter_model.safetensors"
    with pytest.raises(InputError, match="hub:me/faces: ") as caught:
        load_classifier("hub:me/faces", vit=plain())
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("snapshots/*/adapter_model.safetensors"))
    hub.cut = None
    load_classifier("hub:me/faces", vit=plain())


def test_pushing_what_cannot_be_is_refused_before_anything_is(hub, run, tmp_path, capsys):
    _, folder = run
    for arguments, message in (
        ((folder / "best", "faces"), "'faces' is no repository of the hub; expected OWNER/NAME"),
        ((tmp_path, "me/faces"), "adapter_config.json"),
    ):
        with pytest.raises(InputError, match=message):
            push(*arguments)
    assert hub.files == {}
    for name, out, message in (
        ("faces", tmp_path / "out", "'faces' is no repository"),
        ("me/faces", folder, "holds something; choose an empty folder"),
    ):
        assert cli.run(["push", str(folder), name, "--dry-run", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["best", "eval"]


def test_a_backbone_alone_has_a_card(tmp_path):
    from fe_adapter.sharing.card import model_card

    vit = classifier().vit
    save_adapter(vit, tmp_path / "adapter")
    card = model_card(tmp_path / "adapter", "me/adapter")
    assert 'load_adapter(vit, "hub:me/adapter")' in card
    assert "Adapters for an image transformer." in card
