"""Whatever trains is in the folder, or is refused by name: every way of training, and its logits after loading."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fe_adapter import (
    FEAdapterConfig,
    TrainConfig,
    VideoClassifier,
    adapt,
    add_adapter,
    apply_memory_policy,
    fit,
    load_adapter,
    load_classifier,
    save_adapter,
    set_adapter,
)
from fe_adapter.data import EvalTransform, FrameSampler, VideoFolder
from fe_adapter.demo.dataset import draw_onset, write_video
from fe_adapter.errors import InputError
from fe_adapter.evaluate import evaluate
from fe_adapter.models.adaptation import get_adapters, unadapt
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


def test_of_several_adapters_the_active_one_trains_and_is_saved(videos, weights, tmp_path):
    model = classifier(weights)
    set_adapter(add_adapter(model, "b"), "b")
    before = {key: t.clone() for key, t in model.state_dict().items()}
    fit(model, videos, None, TrainConfig(tracker=None, max_epochs=1), out=tmp_path / "run", progress=False)
    changed = {key for key, t in model.state_dict().items() if not torch.equal(t, before[key])}
    assert {part for key in changed for part in key.split(".")} >= {"fe_adapter__b", "head"}
    assert all("fe_adapter__b" in key or key.startswith("head.") for key in changed)
    x = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path / "run" / "last").eval()(x), model.eval()(x))
    again = set_adapter(classifier(weights), "default")
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):  # it is of another adapter
        fit(again, videos, None, TrainConfig(tracker=None, max_epochs=1), out=tmp_path / "run", resume=True)


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


def train_norms_and_freeze_them(model):
    let_norms_train(model)
    with torch.no_grad():
        for name, p in model.vit.named_parameters():
            if ".norm" in name:
                p.mul_(1 + 2**-20)  # less than bf16 could tell
    model.vit.requires_grad_(False)


def load_other_weights(model):
    other = VideoClassifier.from_name(NAME, 2, weights=None, backbone_args=ARGS, tune="head", num_frames=2)
    model.vit.load_state_dict(other.vit.state_dict(), strict=False)


def change_data(model):
    model.vit.pos_embed.data.mul_(2)  # of which no version counter knows


CHANGES = {"norms, frozen again": train_norms_and_freeze_them, "other weights": load_other_weights,
           "by .data": change_data}  # fmt: skip


@pytest.mark.parametrize("tune", ["adapter", "head"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("policy", [None, "bf16", "int8"])
def test_frozen_weights_that_have_changed_are_saved(change, policy, tune, weights, tmp_path):
    if policy == "int8":
        pytest.importorskip("bitsandbytes")
    model = classifier(weights, tune).eval()
    CHANGES[change](model)
    if policy is not None:
        apply_memory_policy(model, policy)
    save_adapter(model, tmp_path)
    again = load_classifier(tmp_path)
    clip = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if policy == "int8" and change == "other weights" else {"rtol": 0, "atol": 0}
    )
    torch.testing.assert_close(again(clip), model(clip), **tolerance)  # scales are rounded twice
    assert not any(p.requires_grad for name, p in again.vit.named_parameters() if "fe_adapter" not in name)
    save_adapter(again, tmp_path / "again")  # whole once more
    torch.testing.assert_close(load_classifier(tmp_path / "again")(clip), again(clip), **tolerance)


@pytest.mark.parametrize("policy", [None, "bf16", "int8", "cast"])
def test_a_frozen_backbone_that_is_as_it_was_is_not_saved(policy, weights, tmp_path):
    if policy == "int8":
        pytest.importorskip("bitsandbytes")
    model = classifier(weights)
    if policy == "cast":
        model.vit.to(torch.bfloat16)
    elif policy is not None:
        apply_memory_policy(model, policy)
    model.vit.load_state_dict(model.vit.state_dict())
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all("fe_adapter" in name or name.startswith("head.") for name in tensors)


def test_weights_loaded_after_adapt_are_those_that_the_adapters_are_of(tmp_path):
    """Nothing of the backbone that `adapt` saw is left, so that any of its kind will do."""
    vit = adapt(build("timm vit"), CONFIG, num_frames=2)
    vit.load_state_dict(build("timm vit").state_dict(), strict=False)
    save_adapter(vit, tmp_path)
    again = load_adapter(build("timm vit"), tmp_path)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(again.eval()(images), vit.eval()(images))


def test_a_head_knows_the_backbone_that_it_was_trained_on(weights, tmp_path):
    save_adapter(classifier(weights, "head"), tmp_path)
    torch.save(classifier(None, "head").vit.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match="was trained on another backbone, or on other weights of it"):
        load_classifier(tmp_path, weights=tmp_path / "other.pth")


def change_eps(vit):
    vit.blocks[1].norm1.eps = 1e-3


def change_heads(vit):
    for block in vit.blocks:
        block.attn.num_heads, block.attn.head_dim = 4, vit.embed_dim // 4


def change_activation(vit):
    vit.blocks[0].mlp.act = nn.ReLU()


def change_pooling(vit):
    vit.global_pool = "avg"


SETTINGS = {
    change_eps: r"blocks\.\*\.norm1\.eps \[1e-06, 0\.001.*\] instead of 1e-06",
    change_heads: r"blocks\.\*\.attn\.num_heads 4 instead of 2",
    change_activation: r"blocks\.\*\.mlp\.act\.class \['ReLU', 'GELU'.*\] instead of GELU",
    change_pooling: r"global_pool avg instead of token",
}


@pytest.mark.parametrize("change", SETTINGS)
@pytest.mark.parametrize("tune", ["adapter", "head", "full"])
def test_the_same_weights_that_compute_otherwise_are_another_backbone(change, tune, weights, tmp_path):
    model = classifier(weights, tune)
    save_adapter(model, tmp_path / "good")
    change(model.vit)
    with pytest.raises(InputError, match=f"the backbone has {SETTINGS[change]}"):
        save_adapter(model, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    vit = VideoClassifier.from_name(NAME, 2, weights=weights, backbone_args=ARGS, tune="head", num_frames=2).vit
    change(vit)
    with pytest.raises(InputError, match=f"was trained on another backbone: this one has {SETTINGS[change]}"):
        load_classifier(tmp_path / "good", vit=vit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tune", ["adapter", "head", "full"])
def test_a_model_that_is_cast_is_cast_when_it_is_loaded(dtype, tune, weights, tmp_path):
    model = classifier(weights, tune).eval()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    model.to(dtype)
    save_adapter(model, tmp_path)
    again = load_classifier(tmp_path)
    clip = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    assert again(clip).dtype == dtype
    assert torch.equal(again(clip), model(clip))


class Doubled(VideoClassifier):
    def forward(self, video):
        return 2 * super().forward(video)


def test_a_forward_of_the_users_is_said_to_stay_behind(weights, tmp_path, caplog):
    model = classifier(weights)
    model.__class__ = Doubled
    save_adapter(model, tmp_path)
    assert "Doubled: hooks and forwards of your own are not saved" in caplog.text


def set_in_adapters(**values):
    def change(model):
        for adapter in get_adapters(model):
            for name, value in values.items():
                setattr(adapter, name, value)

    return change


def repeat_a_block(model):
    model.vit.blocks = nn.Sequential(*model.vit.blocks, model.vit.blocks[0])


def adapt_again(model):
    unadapt(model.vit)
    adapt(model.vit, FEAdapterConfig(bottleneck=6), num_frames=2)


LIVES = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "adapted again": lambda model: adapt_again(model) or model,
    "frozen as a whole": lambda model: model.requires_grad_(False),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("life", LIVES)
def test_whatever_becomes_of_a_model_it_loads_as_it_is(life, weights, tmp_path):
    model = LIVES[life](classifier(weights)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "fe_adapter" in name or "head" in name:
                nn.init.normal_(p, std=0.2)
    save_adapter(model, tmp_path)
    clip = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(load_classifier(tmp_path)(clip), model(clip))


def test_folders_that_say_nothing_of_settings_load(weights, tmp_path):
    model = classifier(weights).eval()
    save_adapter(model, tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    del content["backbone_settings"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    clip = torch.zeros(1, 2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path)(clip), model(clip))


def test_hooks_of_the_user_are_said_to_stay_behind(weights, tmp_path, caplog):
    model = classifier(weights)
    model.vit.blocks[1].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    model.vit.blocks[0].attn.forward = lambda x, **options: x
    model.head.register_forward_pre_hook(lambda module, args: args)
    for _ in range(2):
        save_adapter(model, tmp_path)
    assert (
        caplog.text.count("vit.blocks.0.attn, vit.blocks.1.mlp, head: hooks and forwards of your own are not saved")
        == 1
    )


def test_values_beyond_those_of_the_model_are_refused(weights, tmp_path):
    save_adapter(classifier(weights), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["head.weight"] = tensors["head.weight"].double() * 1e300
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
        (lambda m: setattr(m, "dropout", nn.ReLU()), "the head is another one"),
        (lambda m: setattr(m, "class_names", ("a", "b", "c")), r"the head has the shape \(2, 24\); .* \(3, 24\)"),
        (lambda m: setattr(m, "temporal_pool", "concat"), r"the head has the shape \(2, 24\); .* \(2, 48\)"),
        (lambda m: setattr(m, "temporal_pool", "attention"), "what pools over frames is another one"),
        (lambda m: setattr(m, "pool", nn.Identity()), "what pools over frames is another one"),
        (lambda m: m.head.bfloat16(), r"the head is in torch\.bfloat16 and vit\.cls_token, .* not"),
        (lambda m: m.head.to("meta"), r"head\.weight, head\.bias is on the meta device"),
        (lambda m: m.vit.half(), r"vit\.cls_token is in torch\.float16 and was in torch\.float32"),
        (lambda m: m.register_module("extra", nn.Linear(1, 1)), r"extra\.weight, extra\.bias came into the model"),
        (repeat_a_block, r"vit\.blocks\.3\.norm1\.weight, .* came into the model"),
        (set_in_adapters(activation="relu"), r"blocks\.\*\.fe_adapter\.activation relu instead of identity"),
        (set_in_adapters(max_dilation=1.0), r"blocks\.\*\.fe_adapter\.max_dilation 1\.0 instead of None"),
        (lambda m: setattr(m, "note", "x" * 2000), r"would be refused when it is loaded: classifier\.note is"),
        (lambda m: setattr(m, "clip_seconds", math.nan), r"would be refused .*: classifier\.clip_seconds is nan"),
        (lambda m: m.backbone_args.update(act_layer=nn.ReLU), "cannot be described in adapter_config.json: Object of"),
        (lambda m: m.backbone_args.update(cache_dir="x"), "cache_dir is not for an adapter folder to say"),
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
