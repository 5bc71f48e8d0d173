"""Several adapters on one backbone, by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fe_adapter import (
    FEAdapterConfig,
    VideoClassifier,
    active_adapter,
    adapt,
    add_adapter,
    delete_adapter,
    disable_adapters,
    estimate_memory,
    list_adapters,
    load_adapter,
    load_classifier,
    print_trainable_parameters,
    save_adapter,
    set_adapter,
    trainable_parameters,
    unadapt,
    use_adapters,
)
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.inference import classify
from fe_adapter.models.streaming import AdapterStreams
from tests.models.test_classifier import ARGS, CONFIG, NAME, classifier, video
from tests.vits import build, tokens

T = 2
OTHER = FEAdapterConfig(bottleneck=6, dilation=1, positions=("attn", "mlp"), blocks=(1,))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for adapter in get_adapters(model):
        for p in adapter.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)
    return model


def three(name: str = "timm vit") -> nn.Module:
    vit = adapt(build(name), FEAdapterConfig(bottleneck=8), num_frames=T)
    add_adapter(vit, "same")
    add_adapter(vit, "mlp", OTHER)  # a name that is also a position's
    return randomize(vit)


def images(num_clips: int = 3) -> torch.Tensor:
    return torch.randn(num_clips * T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(vit: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for name in list_adapters(vit):
        found[name] = tokens(set_adapter(vit, name), x)
    set_adapter(vit, "default")
    return found


@pytest.mark.parametrize("name", ["timm vit", "hf vit", "open_clip", "torchvision"])
def test_the_active_one_runs_and_a_batch_may_have_one_for_each_clip(name):
    vit, x = three(name), images()
    assert list_adapters(vit) == ("default", "same", "mlp")
    by_name = outputs(vit, x)
    assert len({tuple(t.flatten()[:8].tolist()) for t in by_name.values()}) == 3
    names = ["mlp", "default", "same"]
    with torch.no_grad(), use_adapters(vit, names):
        mixed = tokens(vit, x).unflatten(0, (3, T))
    for i, used in enumerate(names):
        torch.testing.assert_close(mixed[i], by_name[used].unflatten(0, (3, T))[i])
    with torch.no_grad():
        assert torch.equal(tokens(vit, x), by_name["default"])  # as before
        with disable_adapters(vit):
            assert torch.equal(tokens(vit, x), tokens(build(name), x))
    assert torch.equal(tokens(unadapt(vit), x), tokens(build(name), x))


def test_a_batch_of_one_name_has_the_bits_of_that_name():
    vit, x = three(), images()
    by_name = outputs(vit, x)
    for name, expected in by_name.items():
        with torch.no_grad(), use_adapters(vit, [name] * 3):
            assert torch.equal(tokens(vit, x), expected)


def test_only_the_active_one_trains_and_is_counted(capsys):
    vit = three()
    sizes = {}
    for name in list_adapters(vit):
        set_adapter(vit, name)
        assert active_adapter(vit) == name
        trained = {key for key, p in vit.named_parameters() if p.requires_grad}
        assert trained
        assert all(("__" in key) == (name != "default") for key in trained)
        vit.zero_grad()
        tokens(vit, images()).square().sum().backward()
        assert {key for key, p in vit.named_parameters() if p.grad is not None} == trained
        vit.zero_grad(set_to_none=True)
        sizes[name] = sum(p.numel() for p in trainable_parameters(vit))
        print_trainable_parameters(vit)
        assert capsys.readouterr().out.startswith(f"trainable: {sizes[name]:,} of")
    assert sizes["default"] == sizes["same"] != sizes["mlp"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vit: pickle.loads(pickle.dumps(vit))], ids=["deep", "pickle"])
def test_copies_are_independent(copied):
    vit, x = three(), images()
    before = outputs(vit, x)
    twin = copied(vit)
    assert all(torch.equal(t, before[name]) for name, t in outputs(twin, x).items())
    delete_adapter(randomize(set_adapter(twin, "same"), 5), "default")
    assert list_adapters(twin) == ("same", "mlp")
    assert all(torch.equal(t, before[name]) for name, t in outputs(vit, x).items())


def test_deleted_ones_are_gone_and_their_names_free():
    vit = three()
    keys = {key for key in vit.state_dict() if "__mlp" in key}
    assert keys
    delete_adapter(vit, "mlp")
    assert not keys & set(vit.state_dict())
    assert vit.blocks[1].fe_state.before_mlp is None
    add_adapter(vit, "mlp", CONFIG)
    assert list_adapters(vit) == ("default", "same", "mlp")


def test_names_that_are_none_taken_or_missing_are_refused_in_a_line():
    vit = three()
    for bad in ("", "a.b", "_x", "a b", "x" * 65, None):
        with pytest.raises(InputError, match="is no name of an adapter"):
            add_adapter(vit, bad)
    for call, message in (
        (lambda: add_adapter(vit, "same"), "has an adapter 'same' already"),
        (lambda: set_adapter(vit, "night"), "no adapter 'night'; it has 'default', 'same', 'mlp'"),
        (lambda: delete_adapter(vit, "night"), "no adapter 'night'"),
        (lambda: delete_adapter(vit, "default"), "is the active adapter"),
        (lambda: add_adapter(vit, "b", class_names=["x"]), "are a classifier's"),
        (lambda: add_adapter(vit, "b", FEAdapterConfig(blocks=(7,))), "names block 7"),
        (lambda: add_adapter(build("timm vit"), "b"), "has no adapters; call adapt first"),
        (lambda: use_adapters(vit, "same").__enter__(), "must be a list"),
        (lambda: use_adapters(vit, []).__enter__(), "must be a list"),
        (lambda: use_adapters(vit, ["same", "night"]).__enter__(), "no adapter 'night'"),
        (lambda: adapt(build("timm vit"), num_frames=2, name="a.b"), "is no name of an adapter"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list_adapters(vit) == ("default", "same", "mlp")
    with use_adapters(vit, ["same", "mlp"] * 2), pytest.raises(InputError, match="4 adapter names for 6 frames"):
        tokens(vit, images())


def test_folders_hold_one_adapter_and_load_by_any_name(tmp_path):
    vit, x = three(), images()
    by_name = outputs(vit, x)
    for name in by_name:
        save_adapter(set_adapter(vit, name), tmp_path / name)
    alone = load_adapter(build("timm vit"), tmp_path / "mlp")
    assert list_adapters(alone) == ("default",)
    assert not any("__" in key for key in alone.state_dict())
    with torch.no_grad():
        assert torch.equal(tokens(alone, x), by_name["mlp"])
    both = load_adapter(build("timm vit"), tmp_path / "same", name="a")
    load_adapter(both, tmp_path / "mlp", name="b")
    assert active_adapter(both) == "a"
    with torch.no_grad():
        assert torch.equal(tokens(both, x), by_name["same"])
        assert torch.equal(tokens(set_adapter(both, "b"), x), by_name["mlp"])
    save_adapter(both, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "mlp" / file).read_bytes()


def test_another_backbones_adapter_is_refused_and_leaves_nothing(tmp_path):
    save_adapter(three(), tmp_path / "own")
    other = build("timm vit")
    nn.init.normal_(other.blocks[0].attn.proj.weight)
    save_adapter(adapt(other, CONFIG, num_frames=T), tmp_path / "other")
    vit = load_adapter(build("timm vit"), tmp_path / "own")
    keys = set(vit.state_dict())
    with pytest.raises(InputError, match="trained on another backbone"):
        load_adapter(vit, tmp_path / "other", name="b")
    assert (list_adapters(vit), set(vit.state_dict())) == (("default",), keys)
    with pytest.raises(InputError, match="has other adapters than the model"):
        load_adapter(vit, tmp_path / "other", name="default")
    with pytest.raises(InputError, match="is no name of an adapter"):
        load_adapter(vit, tmp_path / "own", name="a.b")


def test_an_adapter_whose_folder_changes_the_backbone_does_not_join_others(tmp_path):
    vit = adapt(build("timm vit"), CONFIG, num_frames=T)
    vit.norm.requires_grad_(True)
    save_adapter(vit, tmp_path)
    with pytest.raises(
        InputError, match=r"also changed norm.* of the backbone, which the model's other adapters share"
    ):
        load_adapter(three(), tmp_path, name="b")


def test_hot_swap_copies_in_place_and_compiles_nothing_anew(tmp_path):
    vit, x = three(), images()
    by_name = outputs(vit, x)
    for name in ("default", "same"):
        save_adapter(set_adapter(vit, name), tmp_path / name)
    served = load_adapter(build("timm vit"), tmp_path / "default")
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(served, backend=count)
    where = [p.data_ptr() for p in served.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), by_name["default"])
        made = len(graphs)
        load_adapter(compiled, tmp_path / "same")
        torch.testing.assert_close(compiled(x), by_name["same"])
        assert len(graphs) == made
        assert [p.data_ptr() for p in served.parameters()] == where
        load_adapter(compiled, tmp_path / "default", name="first")
        set_adapter(compiled, "first")
        torch.testing.assert_close(compiled(x), by_name["default"])
        made = len(graphs)
        for name in ("default", "first", "default"):  # back and forth
            torch.testing.assert_close(
                compiled(x) if set_adapter(compiled, name) is compiled else None,
                by_name["same" if name == "default" else "default"],
            )
        assert len(graphs) == made
    torch._dynamo.reset()


def two_tasks() -> VideoClassifier:
    model = classifier()
    add_adapter(model, "pain", OTHER, class_names=["none", "some", "much"])
    add_adapter(model, "two", class_names=["no", "yes"], temporal_pool="concat")
    for name in ("pain", "two"):
        nn.init.normal_(model.task(name).head.weight, std=0.2)
        model.task(name).temperature = 1.5
    return randomize(model).eval()


@torch.no_grad()
def test_a_classifier_has_a_head_for_each_name(tmp_path):
    model, clip = two_tasks(), video()
    default = model(clip)
    assert set_adapter(model, "two")(clip).shape == (2, 2)
    assert (model.class_names, model.temporal_pool, model.temperature) == (("no", "yes"), "concat", 1.5)
    assert {key for key, p in model.named_parameters() if p.requires_grad and "vit" not in key} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    two = model(clip)
    save_adapter(model, tmp_path / "two")
    alone = load_classifier(tmp_path / "two")
    assert torch.equal(alone(clip), two)
    assert (alone.class_names, alone.temperature) == (("no", "yes"), 1.5)
    pain = set_adapter(model, "pain")(clip)
    assert torch.equal(set_adapter(model, "default")(clip), default)
    assert model.class_names == ("sad", "happy", "calm")
    with use_adapters(model, ["pain", "default"]):
        torch.testing.assert_close(model(clip), torch.stack([pain[0], default[1]]))
        with pytest.raises(InputError, match="2 adapter names for 4 clips"):
            model(torch.cat([clip, clip]))
        rows = next(classify(model, [(None, clip)], "no"))[1]
        torch.testing.assert_close(rows, torch.stack([(pain[0] / 1.5).softmax(-1), default[1].softmax(-1)]))
    with pytest.raises(InputError, match=r"different numbers of classes \('default' 3, 'two' 2\)"):
        use_adapters(model, ["default", "two"]).__enter__()
    delete_adapter(model, "two")
    load_adapter(model, tmp_path / "two", name="again")
    assert model.task("again").class_names == ("no", "yes")
    assert torch.equal(set_adapter(model, "again")(clip), two)
    again = copy.deepcopy(model)
    assert torch.equal(set_adapter(again, "default")(clip), default)
    assert torch.equal(model(clip), two)


@torch.no_grad()
def test_heads_of_one_shape_are_swapped_in_place(tmp_path):
    first, second, clip = classifier(), classifier(), video()
    second.load_state_dict(first.state_dict())
    second.class_names, second.temperature = ("a", "b", "c"), 2.0
    randomize(second, 3)
    nn.init.normal_(second.head.weight)
    save_adapter(second, tmp_path)
    where = [p.data_ptr() for p in first.parameters()]
    load_adapter(first, tmp_path)
    assert torch.equal(first(clip), second(clip))
    assert [p.data_ptr() for p in first.parameters()] == where
    assert (first.class_names, first.temperature) == (("a", "b", "c"), 2.0)


def test_loading_leaves_the_backbone_that_others_share(tmp_path):
    """Random weights are in the folder, and nobody else's adapters may be given them."""
    model, other = classifier(), classifier()
    nn.init.normal_(other.vit.blocks[0].attn.proj.weight)
    save_adapter(other, tmp_path)
    before = model.vit.blocks[0].attn.proj.weight.clone()
    with pytest.raises(InputError, match=r"holds other weights of the backbone \(vit\.blocks\.0\.attn\.proj\.weight\)"):
        load_adapter(model, tmp_path, name="b")
    load_adapter(model, tmp_path, name="b", strict=False)
    assert torch.equal(model.vit.blocks[0].attn.proj.weight, before)
    assert torch.equal(model.task("b").head.weight, other.head.weight)


def test_the_planner_counts_all_there_are():
    model = classifier()
    first = estimate_memory(model, 2, 2, 3, 32, 32, dtype=torch.uint8)
    add_adapter(model, "b")
    added = sum(p.nbytes for key, p in model.named_parameters() if "__b" in key or "of_b" in key)
    second = estimate_memory(model, 2, 2, 3, 32, 32, dtype=torch.uint8)
    assert added > 0
    assert second.parameters - first.parameters == added
    assert (second.gradients, second.optimizer, second.saved) == (first.gradients, first.optimizer, first.saved)


def test_a_backbone_alone_does_not_lead_its_classifier_astray(tmp_path):
    model = two_tasks()
    set_adapter(model.vit, "pain")
    with pytest.raises(InputError, match="give set_adapter the classifier"):
        model(video())
    with pytest.raises(InputError, match="'default' is the active adapter"):
        delete_adapter(model, "default")
    assert set_adapter(model, "pain")(video()).shape == (2, 3)  # as that line says
    assert model.class_names == ("none", "some", "much")
    set_adapter(model, "default")
    add_adapter(model.vit, "headless")
    with pytest.raises(InputError, match="no head for the adapter 'headless'"):
        set_adapter(model, "headless")
    assert active_adapter(model) == "default"
    plain = VideoClassifier.from_name(NAME, 3, weights="none", backbone_args=ARGS, num_frames=2, tune="head")
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="tune='head' and takes no adapters"):
        load_adapter(plain, tmp_path)


def test_streams_keep_to_the_adapter_they_began_with():
    vit = adapt(build("timm vit"), FEAdapterConfig(bottleneck=4, causal=True, dilation=1), num_frames=T)
    streams = AdapterStreams(vit, 1)
    set_adapter(add_adapter(vit, "b"), "b")
    with pytest.raises(InputError, match="began with the adapter 'default'"), streams.running():
        pass


@pytest.mark.filterwarnings("ignore")  # of peft
def test_lora_beside_adapters_trains_once_they_are_set_active(caplog):
    """peft freezes all that is not its own; both train after `set_adapter`, and peft saves its part."""
    peft = pytest.importorskip("peft")
    vit = adapt(build("timm vit"), CONFIG, num_frames=T)
    model = peft.get_peft_model(vit, peft.LoraConfig(target_modules=["qkv"], r=2))
    model.train()
    assert "the adapters are frozen" in caplog.text
    assert all("lora" in key for key, p in model.named_parameters() if p.requires_grad)
    set_adapter(model, "default")
    randomize(vit)
    tokens(vit, images()).square().sum().backward()
    with_gradient = [key for key, p in model.named_parameters() if p.grad is not None]
    assert {part for key in with_gradient for part in key.split(".")} >= {"fe_adapter", "lora_A", "lora_B"}
    assert set(peft.get_peft_model_state_dict(model))
    with pytest.raises(InputError, match="came into the model after"):
        save_adapter(vit, "nowhere")
    caplog.clear()
    model.train()
    assert caplog.text == ""
    with pytest.raises(InputError, match="holds layers of peft"):
        adapt(peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"]), build("timm vit")), num_frames=T)
