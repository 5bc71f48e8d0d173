"""Adapting every supported backbone, and taking the adapters out again."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, FusedFEAdapter, VideoClassifier, load_adapter, save_adapter
from fe_adapter.backbones.describe import describe_backbone
from fe_adapter.errors import InputError
from fe_adapter.memory import measure_saved_memory
from fe_adapter.models.adaptation import (
    adapt,
    disable_adapters,
    get_adaptation,
    get_adapters,
    print_trainable_parameters,
    set_num_frames,
    trainable_parameters,
    unadapt,
)
from fe_adapter.models.blocks import get_state, put_adapters
from fe_adapter.models.origin import (
    changed_tensors,
    fingerprint,
    get_origin,
    hooked_modules,
    other_settings,
    settings_of,
)
from tests.vits import BACKBONES, build, size, tokens

T = 2
BOTH = FEAdapterConfig(bottleneck=8, positions=("attn", "mlp"))


def config_for(name: str) -> FEAdapterConfig:
    return FEAdapterConfig(bottleneck=8) if name == "timm parallel" else BOTH


def images_for(name: str, num_clips: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(num_clips * T, 3, *size(name))


def randomize_adapters(model: nn.Module) -> None:
    for adapter in get_adapters(model):
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_life_of_an_adapted_backbone(name):
    vit, images = build(name), images_for(name)
    assert describe_backbone(vit).num_prefix_tokens == BACKBONES[name][1]

    @torch.no_grad()  # where something asks for a gradient, PyTorch's attention may take another path
    def output():
        return tokens(vit, images)

    before, state = output(), copy.deepcopy(vit.state_dict())
    trained = [p.requires_grad for p in vit.parameters()]
    assert adapt(vit, config_for(name), num_frames=T) is vit
    assert torch.equal(output(), before)  # fresh: the same bits
    assert {key for key in vit.state_dict() if "fe_adapter" not in key} == set(state)

    optimizer = torch.optim.Adam(trainable_parameters(vit), lr=0.01)
    start = {key: p.clone() for key, p in vit.named_parameters()}
    vit.train()
    target = torch.randn_like(before)
    for _ in range(3):
        optimizer.zero_grad()
        (tokens(vit, images) - target).square().sum().backward()
        optimizer.step()
    still = {key for key, p in vit.named_parameters() if torch.equal(p, start[key])}
    assert {key for key in start if "fe_adapter" not in key} <= still
    assert {key for key in still if "fe_adapter" in key} <= unread(vit)

    with disable_adapters(vit):
        assert torch.equal(output(), before)
    assert not torch.equal(output(), before)

    unadapt(vit)
    assert torch.equal(output(), before)
    assert all(torch.equal(value, state[key]) for key, value in vit.state_dict().items())
    assert set(vit.state_dict()) == set(state)
    assert [p.requires_grad for p in vit.parameters()] == trained
    assert not any(module._forward_pre_hooks for module in vit.modules())


def unread(vit: nn.Module) -> set[str]:
    """Where the class token alone is read, what the last block's MLP adapter does to the patches has no effect."""
    path = get_adaptation(vit).blocks_path
    blocks = [f"{path}.1.fe_adapter_mlp", f"{path}.encoder_layer_1.fe_adapter_mlp"]
    return {key for key, _ in vit.named_parameters() if key.startswith(tuple(blocks))}


@pytest.mark.parametrize("name", ["timm vit", "timm dinov3", "hf vit", "hf clip vision", "open_clip", "torchvision"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vit: pickle.loads(pickle.dumps(vit))], ids=["deep", "pickle"])
def test_copies_are_independent(name, copied):
    vit, images = adapt(build(name), BOTH, num_frames=T), images_for(name)
    randomize_adapters(vit)
    before = tokens(vit, images)
    twin = copied(vit)
    assert torch.equal(tokens(twin, images), before)
    randomize_adapters(twin)
    assert not torch.equal(tokens(twin, images), before)
    assert torch.equal(tokens(vit, images), before)
    twin.train()
    assert not vit.training
    unadapt(twin)
    assert torch.equal(tokens(vit, images), before)


@pytest.mark.parametrize(
    ("dilation", "kernel_size", "expected"),
    [((1, 2), 3, [1, 2]), ((2, 1, 2), (3, 3, 3), [(2, 1, 2)] * 2), (((1, 2, 2), 3), (3, 3, 3), [(1, 2, 2), 3])],
)
def test_every_block_has_its_dilation(dilation, kernel_size, expected):
    config = FEAdapterConfig(bottleneck=4, dilation=dilation, kernel_size=kernel_size, positions=("attn", "mlp"))
    vit = adapt(build("timm vit"), config, num_frames=T)
    assert [adapter.dilation for adapter in get_adapters(vit)] == [d for d in expected for _ in config.positions]
    randomize_adapters(vit)
    assert tokens(vit, images_for("timm vit")).isfinite().all()


def test_dilations_for_other_blocks_are_refused_before_the_model_is_touched():
    vit = build("timm vit")
    keys = set(vit.state_dict())
    for blocks, message in ((None, "names 3 blocks, but 2 are adapted"), ((1,), "names 3 blocks, but 1 are adapted")):
        with pytest.raises(InputError, match=message):
            adapt(vit, FEAdapterConfig(dilation=(1, 2, 3), blocks=blocks), num_frames=T)
    vit.blocks.append(copy.deepcopy(vit.blocks[0]))
    with pytest.raises(InputError, match=r"write one \(t, h, w\) per block"):
        adapt(vit, FEAdapterConfig(dilation=(1, 2, 2), kernel_size=(3, 3, 3)), num_frames=T)
    del vit.blocks[2]
    assert set(vit.state_dict()) == keys
    assert not hasattr(vit, "fe_adaptation")


@pytest.mark.parametrize("arguments", [{"num_prefix_tokens": -1}, {"embed_dim": 0}, {"config": {"bottleneck": 4}}])
def test_a_refused_model_is_left_as_it_was(arguments):
    vit = build("timm vit")
    before = {name: p.requires_grad for name, p in vit.named_parameters()}
    with pytest.raises((InputError, TypeError)):
        adapt(vit, num_frames=T, **arguments)
    assert {name: p.requires_grad for name, p in vit.named_parameters()} == before
    unadapt(adapt(vit, num_frames=T))


@pytest.mark.parametrize("name", ["timm vit", "hf vit", "open_clip"])
def test_gradient_checkpointing_changes_no_gradient(name):
    vit, images = adapt(build(name), BOTH, num_frames=T), images_for(name)
    randomize_adapters(vit)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing and name == "timm vit":
            vit.set_grad_checkpointing()
        elif checkpointing and name == "hf vit":
            getattr(vit, "activation_checkpointing_enable", vit.gradient_checkpointing_enable)()
            for module in vit.modules():  # transformers checkpoints while training; the backbone evaluates
                module.training = True
        elif checkpointing:
            vit.set_grad_checkpointing()
        vit.zero_grad()
        tokens(vit, images).square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in vit.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=lambda m, key=key: f"{key}: {m}")
    assert gradients[0][next(iter(gradients[0]))].any()


def test_training_mode_leaves_the_backbone_evaluating():
    vit = nn.Sequential(adapt(build("timm vit"), BOTH, num_frames=T))
    vit.train()
    training = {type(module) for module in vit[0].modules() if module.training}
    assert FusedFEAdapter in training
    assert not any(module.training for module in vit[0].blocks[0].attn.modules())
    assert not vit[0].training


def test_chosen_blocks_and_where_the_graph_begins():
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=4, blocks=(-1,)), num_frames=T)
    assert not hasattr(vit.blocks[0], "fe_adapter")
    seen = []
    vit.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    vit.blocks[1].register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    tokens(vit, images_for("timm vit"))
    assert seen == [False, True]


@pytest.mark.parametrize("name", ["timm vit", "timm vit 24x40", "timm vit any size"])
def test_spatial_kernels_know_the_grid(name):
    vit = build(name)
    adapt(vit, FEAdapterConfig(bottleneck=4, kernel_size=(3, 3, 3), blocks=(0,)), num_frames=T)
    randomize_adapters(vit)
    seen = []
    vit.blocks[0].fe_adapter.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    sizes = [size(name), (16, 40)] if name == "timm vit any size" else [size(name)]
    for height, width in sizes:
        vit(torch.randn(T, 3, height, width))
        x, y = seen.pop()
        expected = FusedFEAdapter(48, 4, num_frames=T, kernel_size=(3, 3, 3), grid_size=(height // 8, width // 8))
        expected.load_state_dict(vit.blocks[0].fe_adapter.state_dict())
        assert torch.equal(expected(x), y)


def test_frames_of_a_clip_see_each_other_and_no_other_clip():
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8, dilation=1), num_frames=T)
    randomize_adapters(vit)
    images = images_for("timm vit", num_clips=2)
    changed = images.clone()
    changed[0] += torch.randn_like(changed[0])
    differs = (vit(images) != vit(changed)).flatten(1).any(1).tolist()
    assert differs == [True, True, False, False]
    set_num_frames(vit, 4)
    assert (vit(images) != vit(changed)).flatten(1).any(1).tolist() == [True, True, True, False]


def test_the_mlp_position_is_between_attention_and_mlp():
    """Against a block taken apart by hand."""
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8, positions="mlp"), num_frames=T)
    randomize_adapters(vit)
    block = vit.blocks[0]
    x = torch.randn(T, 17, 48)
    middle = block.fe_adapter_mlp(x + block.attn(block.norm1(x)))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_any_model_by_explicit_arguments():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.linear(x)

    model = nn.Sequential(nn.ModuleDict({"stages": nn.Sequential(Block(), Block())})["stages"])
    x = torch.randn(4, 5, 6)
    before = model(x)
    adapt(model, FEAdapterConfig(bottleneck=2), num_frames=2, blocks_path="0", embed_dim=6, num_prefix_tokens=0)
    assert torch.equal(model(x), before)
    assert len(get_adapters(model)) == 2


def test_counting_parameters(capsys):
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8), num_frames=T)
    D, R = 48, 8
    adapter, dilation = 2 * D * R + R + D + 3 * R + R, 3 * R + 1
    print_trainable_parameters(vit)
    total = sum(p.numel() for p in vit.parameters())
    out = capsys.readouterr().out
    assert out.startswith(f"trainable: {2 * (adapter + dilation):,} of {total:,} parameters")
    assert f"adapters {2 * adapter:,}, dilation {2 * dilation:,}, other 0" in out


def test_fingerprint_survives_bf16_and_sees_other_weights():
    vit = build("timm vit")
    first = get_origin(adapt(copy.deepcopy(vit), num_frames=T)).fingerprint
    assert get_origin(adapt(copy.deepcopy(vit).bfloat16(), num_frames=T)).fingerprint == first
    nn.init.normal_(vit.blocks[1].attn.proj.weight)
    assert get_origin(adapt(vit, num_frames=T)).fingerprint != first


@pytest.mark.parametrize("name", BACKBONES)
def test_running_a_backbone_changes_nothing_that_a_folder_tells_it_by(name):
    vit = build(name)
    vit = describe_backbone(adapt(vit, config_for(name), num_frames=T)).vit
    if "fe_adaptation" not in vars(vit):
        pytest.skip("the transformer is a part of the model")
    before = get_origin(vit)
    assert before.settings
    assert json.loads(json.dumps(before.settings)) == before.settings
    vit.train()
    tokens(vit, images_for(name))
    assert other_settings(before.settings, settings_of(vit)) == []
    assert changed_tensors(vit) == {}
    assert hooked_modules(vit) == []


def test_a_bf16_backbone_keeps_fp32_adapters():
    vit = adapt(build("timm vit").bfloat16(), FEAdapterConfig(bottleneck=8), num_frames=T)
    assert {p.dtype for p in trainable_parameters(vit)} == {torch.float32}
    out = vit(images_for("timm vit").bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()


def test_recompute_input_warns_where_nothing_is_shared(caplog):
    with caplog.at_level(logging.WARNING, logger="fe_adapter"):
        adapt(build("timm vit").bfloat16(), FEAdapterConfig(recompute="input"), num_frames=T)
    assert "keeps a copy of its own" in caplog.text


def refused(name: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, **options)


def test_what_cannot_be_adapted_is_refused_with_the_reason():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    mae = transformers.ViTMAEModel(transformers.ViTMAEConfig(image_size=32, patch_size=8, **small))
    cases = [
        (refused("swin_tiny_patch4_window7_224"), "SwinTransformer cannot be adapted: its windows and stages"),
        (refused("hiera_tiny_224"), "Hiera cannot be adapted: it pools tokens"),
        (refused("samvit_base_patch16", depth=1, img_size=64), "VisionTransformerSAM cannot be adapted: .* map"),
        (refused("naflexvit_base_patch16_gap", depth=1), "NaFlexVit cannot be adapted: it packs images"),
        (refused("vit_tiny_patch16_224", depth=1, patch_drop_rate=0.5), "patch dropout cannot be adapted"),
        (mae, "ViTMAEModel cannot be adapted: it drops and shuffles patches"),
        (refused("resnet18"), "ResNet is no image transformer of timm"),
    ]
    for model, message in cases:
        before = [p.requires_grad for p in model.parameters()]
        with pytest.raises(InputError, match=message):
            adapt(model, num_frames=T)
        assert [p.requires_grad for p in model.parameters()] == before


def test_bad_arguments_are_refused_and_change_nothing():
    vit = build("timm vit")
    cases = [
        ({"num_frames": 0}, "num_frames=0 is too small"),
        ({"num_frames": 2, "config": FEAdapterConfig(blocks=(2,))}, "names block 2, but the model has 2 blocks"),
        ({"num_frames": 2, "blocks_path": "blocks"}, "give embed_dim and num_prefix_tokens"),
        (
            {"num_frames": 2, "blocks_path": "stages", "embed_dim": 48, "num_prefix_tokens": 1},
            "VisionTransformer has no 'stages'",
        ),
        (
            {"num_frames": 2, "blocks_path": "norm", "embed_dim": 48, "num_prefix_tokens": 1},
            "'norm' of VisionTransformer is no list of blocks",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            adapt(vit, **arguments)
        assert not hasattr(vit, "fe_adaptation")
        assert all(p.requires_grad for p in vit.parameters())
    with pytest.raises(InputError, match="has no adapters; call adapt first"):
        unadapt(vit)
    adapt(vit, num_frames=2)
    with pytest.raises(InputError, match="adapted already; call unadapt first"):
        adapt(vit, num_frames=2)
    with pytest.raises(InputError, match="side by side: positions='mlp' does not exist"):
        adapt(build("timm parallel"), BOTH, num_frames=2)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("blocks", [None, (1,)], ids=["all blocks", "the second block"])
def test_transformers_own_checkpointing_has_its_effect(blocks):
    """It asks for training mode, which a frozen block is never in: nothing was checkpointed, and nothing said."""
    pytest.importorskip("transformers")
    x = images_for("hf vit")
    made = []
    for enabled in (False, True):
        vit = adapt(build("hf vit"), FEAdapterConfig(bottleneck=8, blocks=blocks), num_frames=2)
        for adapter in get_adapters(vit):
            nn.init.normal_(adapter.temporal_conv.weight, generator=torch.Generator().manual_seed(0))
        if enabled:
            vit.gradient_checkpointing_enable()
        vit.train()
        saved = measure_saved_memory(vit, x)
        vit(x).last_hidden_state.square().mean().backward()
        made.append((saved, [p.grad for p in trainable_parameters(vit)]))
    assert made[1][0] < 0.5 * made[0][0]
    assert all(torch.equal(a, b) for a, b in zip(made[0][1], made[1][1], strict=True))
    assert type(unadapt(vit).layers[0]) is type(build("hf vit").layers[0])


def test_frames_that_were_set_are_those_that_are_saved(tmp_path):
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8), num_frames=2)
    set_num_frames(vit, 4)
    save_adapter(vit, tmp_path)
    again = load_adapter(build("timm vit"), tmp_path)
    assert {adapter.num_frames for adapter in get_adapters(again)} == {4}


def test_overlapping_contexts_leave_adapters_as_they_were():
    """As two requests to one model have them: the one that came first goes first."""
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8), num_frames=2)
    randomize_adapters(vit)
    x = images_for("timm vit")
    expected = tokens(vit, x)
    first, second = disable_adapters(vit), disable_adapters(vit)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.equal(tokens(vit, x), expected)
    second.__exit__(None, None, None)
    assert torch.equal(tokens(vit, x), expected)


def test_a_block_holds_adapters_of_several_names():
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=8, positions=("attn", "mlp")), num_frames=2)
    block, x = vit.blocks[0], images_for("timm vit")
    expected, fingerprint_before = tokens(vit, x), fingerprint(vit)
    other = FusedFEAdapter(48, 4, num_frames=2)
    for p in other.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    put_adapters(block, {"attn": other}, None, "second")
    assert torch.equal(tokens(vit, x), expected)
    get_state(block).active = "second"
    assert not torch.equal(tokens(vit, x), expected)
    get_state(block).active = "default"
    assert torch.equal(tokens(vit, x), expected)
    assert fingerprint(vit) == fingerprint_before
    plain = unadapt(vit)
    assert not get_adapters(plain)
    assert type(plain.blocks[0]) is type(build("timm vit").blocks[0])


def test_one_block_in_several_places_is_refused():
    vit = build("timm vit")
    vit.blocks[1] = vit.blocks[0]
    with pytest.raises(InputError, match="one block is in the model several times"):
        adapt(vit, FEAdapterConfig(bottleneck=8), num_frames=2)


def test_a_subclass_of_a_block_has_its_point_before_the_mlp():
    vit = build("timm vit")
    for block in vit.blocks:
        block.__class__ = type("FSDPBlock", (type(block),), {})
    adapt(vit, FEAdapterConfig(bottleneck=8, positions="mlp"), num_frames=2)
    assert torch.equal(tokens(vit, images_for("timm vit")), tokens(build("timm vit"), images_for("timm vit")))


@pytest.mark.parametrize("wrong", [{"embed_dim": 7}, {"num_prefix_tokens": 3}, {"grid_size": (5, 5)}])
def test_what_contradicts_the_model_is_refused(wrong):
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(InputError, match=f"{next(iter(wrong))}=.*, but the model has"):
        adapt(vit, num_frames=2, **wrong)
    assert not hasattr(vit, "fe_adaptation")
    adapt(vit, num_frames=2, embed_dim=24, num_prefix_tokens=1, grid_size=(2, 2))


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), True, 0, "2"])
def test_a_bound_of_the_dilation_is_a_finite_number(wrong):
    with pytest.raises(InputError, match=r"max_dilation=.* is no positive number"):
        FEAdapterConfig(max_dilation=wrong)


@pytest.mark.filterwarnings("ignore")  # both are deprecated
@pytest.mark.parametrize("compiler", ["trace", "script"])
@pytest.mark.parametrize("kind", ["backbone", "classifier", "head"])
def test_torch_jit_is_refused_in_a_line(compiler, kind):
    vit = build("timm vit")
    if kind == "backbone":
        model = adapt(vit, FEAdapterConfig(bottleneck=8), num_frames=T)
    else:
        tune = "head" if kind == "head" else "adapter"
        model = VideoClassifier(vit, 2, num_frames=T, tune=tune)
    x = images_for("timm vit") if kind == "backbone" else images_for("timm vit").unflatten(0, (-1, T)).clip(0, 1)
    example = () if compiler == "script" else (x,)
    if kind == "head" and compiler == "trace":
        assert torch.jit.trace(model.eval(), x)(x).shape == (len(x), 2)
        return
    with pytest.raises(RuntimeError, match=r"use torch\.export") as caught:
        getattr(torch.jit, compiler)(model, *example)
    assert "\n" not in str(caught.value)
