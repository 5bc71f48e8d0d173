"""Whatever trains is in the folder, or is refused by name: every way of training, and its logits after loading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fe_adapter import FEAdapterConfig, TrainConfig, VideoClassifier, adapt, fit, load_classifier, save_adapter
from fe_adapter.data import EvalTransform, FrameSampler, VideoFolder
from fe_adapter.demo.dataset import draw_onset, write_video
from fe_adapter.errors import InputError
from fe_adapter.evaluate import evaluate
from fe_adapter.predict import predict_video
from tests.vits import build

pytest.importorskip("timm")
pytest.importorskip("av")
pytest.importorskip("accelerate")
NAME = "timm:vit_tiny_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
CONFIG = FEAdapterConfig(bottleneck=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write_video(root / "ab"[i % 2] / f"{i}.mp4", draw_onset(np.random.default_rng(i)))
    sampler = FrameSampler(2)
    return VideoFolder(root, class_names=("a", "b"), sampler=sampler, transform=EvalTransform((32, 32)), in_memory=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a backbone that somebody else has, so that a folder need not hold it."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(
        VideoClassifier.from_name(
            NAME, 2, weights=None, backbone_args=ARGS, tune="head", num_frames=2
        ).vit.state_dict(),
        path,
    )
    return path


def classifier(weights, tune="adapter", **options):
    torch.manual_seed(0)
    config = {"config": CONFIG} if tune == "adapter" else {}
    return VideoClassifier.from_name(
        NAME, weights=weights, backbone_args=ARGS, class_names=("a", "b"), num_frames=2, tune=tune, **config, **options
    )


def let_norms_train(model):
    for name, p in model.vit.named_parameters():
        if ".norm" in name:
            p.requires_grad_(True)
    return model


def blocks_in_place(model):
    for block in model.vit.blocks:
        block.compile(backend="eager")
    return model


def blocks_wrapped(model):
    for i, block in enumerate(model.vit.blocks):
        model.vit.blocks[i] = torch.compile(block, backend="eager")
    return model


def backbone_wrapped(model):
    model.vit = torch.compile(model.vit, backend="eager")
    return model


def whole(model):
    return torch.compile(model, backend="eager")


WAYS = {
    "adapters": ("adapter", lambda model: model, {}),
    "the head": ("head", lambda model: model, {}),
    "all of it": ("full", lambda model: model, {}),
    "adapters and norms": ("adapter", let_norms_train, {}),
    "the head and norms": ("head", let_norms_train, {}),
    "adapters, two bits": ("adapter", lambda model: model, {"memory_policy": "gelu2bit+full:0"}),
    "adapters, frozen in bf16": ("adapter", lambda model: model, {"memory_policy": "bf16"}),
    "adapters, frozen in int8": ("adapter", lambda model: model, {"memory_policy": "int8"}),
    "adapters, frozen in nf4": ("adapter", lambda model: model, {"memory_policy": "bf16+nf4"}),
    "blocks compiled in place": ("adapter", blocks_in_place, {}),
    "blocks compiled": ("adapter", blocks_wrapped, {}),
    "blocks compiled, and norms": ("adapter", lambda model: let_norms_train(blocks_wrapped(model)), {}),
    "the backbone compiled": ("adapter", backbone_wrapped, {}),
    "the model compiled": ("adapter", whole, {}),
    "the model compiled, all of it": ("full", whole, {}),
}


@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("has_weights", [True, False], ids=["weights of others", "random weights"])
def test_what_is_loaded_gives_the_same_bits(way, has_weights, videos, weights, tmp_path):
    tune, change, options = WAYS[way]
    if "int8" in way or "nf4" in way:
        pytest.importorskip("bitsandbytes")
    model = change(classifier(weights if has_weights else None, tune))
    recipe = TrainConfig(max_epochs=2, batch_size=2, lr=0.05, tracker=None, **options)
    result = fit(model, videos, None, recipe, out=tmp_path / "run", progress=False)
    again = load_classifier(result.folder)
    clip = torch.stack([videos[i]["video"] for i in range(4)])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert torch.equal(again(clip), model.eval()(clip))
    content = json.loads((result.folder / "adapter_config.json").read_text())
    assert bool(content.get("also_trained")) == ("norms" in way and has_weights)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [blocks_wrapped, backbone_wrapped])
def test_what_was_compiled_before_is_saved_under_plain_names(wrap, weights, tmp_path):
    compiled, plain = (classifier(weights, "head").vit for _ in range(2))
    holder = nn.Module()
    holder.vit = compiled
    vit = wrap(holder).vit
    adapted = adapt(vit, CONFIG, num_frames=2)
    assert adapted is vit
    for name, p in vit.named_parameters():
        if "fe_adapter" in name:
            nn.init.normal_(p, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(vit, tmp_path)
    from fe_adapter import load_adapter

    load_adapter(plain, tmp_path)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(vit(images), plain(images))


def peft_model(model, targets):
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=2), model)


@pytest.mark.filterwarnings("ignore")
def test_lora_that_no_folder_could_give_back_is_refused_by_name(videos, weights, tmp_path):
    model = classifier(weights)
    peft_model(model.vit, ["qkv"])
    for adapter in model.vit.modules():
        if type(adapter).__name__ == "FusedFEAdapter":
            adapter.requires_grad_(True)
    with pytest.raises(
        InputError, match=r"vit\.blocks\.0\.attn\.qkv\.lora_A\.default\.weight.* came into the model after"
    ):
        fit(model, videos, None, TrainConfig(tracker=None), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="came into the model after"):
        save_adapter(model, tmp_path / "folder")


@pytest.mark.filterwarnings("ignore")
def test_adapters_that_peft_froze_are_refused(videos, weights, tmp_path):
    model = classifier(weights)
    for p in model.vit.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="the adapters are frozen"):
        fit(model, videos, None, TrainConfig(tracker=None), out=tmp_path / "run", progress=False)


@pytest.mark.filterwarnings("ignore")
def test_lora_before_adapt_is_refused_and_lora_in_adapters_too(weights):
    with pytest.raises(InputError, match="holds layers of peft"):
        adapt(peft_model(build("timm vit"), ["qkv"]), CONFIG, num_frames=2)
    model = classifier(weights)
    peft_model(model.vit, "all-linear")
    with pytest.raises(InputError, match="peft has put its layers into this adapter"):
        model(torch.zeros(1, 2, 3, 32, 32))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_other_wrappers_evaluate_predict_and_save_but_do_not_train(wrap, videos, weights, tmp_path):
    model = classifier(weights)
    wrapped = wrap(model)
    with pytest.raises(InputError, match=f"fit takes the model itself, not a {wrap.__name__}"):
        fit(wrapped, videos, None, TrainConfig(tracker=None), out=tmp_path / "run", progress=False)
    save_adapter(wrapped, tmp_path / "folder")
    plain, other = evaluate(model, videos, description=""), evaluate(wrapped, videos, description="")
    assert torch.equal(plain.probabilities, other.probabilities)
    path = videos.paths[0]
    assert torch.equal(
        predict_video(model.eval(), path).probabilities, predict_video(wrapped.eval(), path).probabilities
    )


def test_a_folder_with_values_that_are_not_finite_is_refused(weights, tmp_path):
    save_adapter(classifier(weights), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["head.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"head\.weight holds NaN or infinite values"):
        load_classifier(tmp_path)


class Cosine(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.normalize(x, dim=-1))


def without_norm(model):
    model.vit.norm = nn.Identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "head", Cosine(24, 2)), "the head is another one"),
        (lambda m: setattr(m, "head", nn.Linear(24, 2, bias=False)), "the head is another one"),
        (lambda m: setattr(m, "head", nn.Sequential(nn.Linear(24, 2))), "the head is another one"),
        (without_norm, r"vit\.norm\.bias, vit\.norm\.weight went out of the model"),
        (lambda m: m.mean.fill_(0.1), "mean or std of the classifier are not those"),
        (lambda m: m.head.weight.data.fill_(float("nan")), r"head\.weight holds NaN or infinite values"),
    ],
)
def test_a_model_that_no_folder_could_give_back_is_not_saved(change, message, weights, tmp_path):
    model = classifier(weights)
    change(model)
    with pytest.raises(InputError, match=message):
        save_adapter(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "trust_remote_code", "cache_dir"])
def test_a_folder_does_not_say_what_is_read_or_run(name, weights, tmp_path):
    save_adapter(classifier(weights), tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    content["backbone"]["args"][name] = "/etc/passwd"
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name} is not for an adapter folder to say"):
        load_classifier(tmp_path)
