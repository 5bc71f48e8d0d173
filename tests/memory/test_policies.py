"""Memory policies: the same gradients with less kept, on blocks of every library."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from fe_adapter import FEAdapterConfig, VideoClassifier, adapt, apply_memory_policy, estimate_memory
from fe_adapter.errors import InputError
from fe_adapter.memory import xformers
from fe_adapter.memory.frozen_weights import PackedLinear
from fe_adapter.memory.measure import measure_saved_memory
from fe_adapter.models.adaptation import get_adapters, trainable_parameters, unadapt
from fe_adapter.ops.gelu2bit import GELUS, STEPS, gelu2bit, multiply_steps_op, step_codes_op
from tests.vits import build, tokens

FRAMES = 2
LIBRARIES = ("timm vit", "timm eva", "timm dinov2 registers", "hf vit", "hf clip vision", "hf dinov3", "open_clip",
             "torchvision")  # fmt: skip


def adapted(name: str, **config) -> nn.Module:
    """An adapted backbone whose adapters do something."""
    model = adapt(build(name), FEAdapterConfig(bottleneck=8, **config), num_frames=FRAMES)
    for adapter in get_adapters(model):
        nn.init.normal_(adapter.temporal_conv.weight, std=0.3)
    return model


def gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    parameters = trainable_parameters(model)
    out = tokens(model, images)
    return list(torch.autograd.grad(out, parameters, torch.randn_like(out)))


def images(num_clips: int = 2) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(num_clips * FRAMES, 3, 32, 32)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("policy", ["full", "selective", "offload", "recompute_hidden", "full:1", "selective:0+full:1"])
def test_exact_policies_give_the_same_gradients_bit_for_bit(name, policy):
    model = adapted(name, positions=("attn", "mlp") if name == "timm vit" else "attn")
    x = images()
    expected, kept = gradients(model, x), measure_saved_memory(model, x)
    assert apply_memory_policy(model, policy) is model
    for actual, gradient in zip(gradients(model, x), expected, strict=True):
        assert torch.equal(actual, gradient)
    if policy != "offload":  # the host's memory is this one
        assert measure_saved_memory(model, x) < kept
    apply_memory_policy(model, "none")
    assert measure_saved_memory(model, x) == kept


def test_recompute_input_is_within_rounding():
    model, x = adapted("timm vit"), images()
    expected = gradients(model, x)
    apply_memory_policy(model, "recompute_input")
    for actual, gradient in zip(gradients(model, x), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_saved_memory_by_policy():
    """Counted by hand for a block: 11 D-wide tensors and the adapter's hidden; a checkpoint keeps 1, `selective` 6."""
    D, L = 48, 17
    x = images(8)
    token = x.shape[0] * L * D * 4  # bytes of a D-wide tensor
    rest = measure_saved_memory(apply_memory_policy(adapted("timm vit"), "full"), x) - 2 * token
    for policy, tensors in (("full", 1), ("selective", 6), ("none", 11 + 8 / 48)):
        saved = measure_saved_memory(apply_memory_policy(adapted("timm vit"), policy), x) - rest
        assert saved / (2 * token) == pytest.approx(tensors, abs=0.35), policy


def test_full_fine_tuning_can_be_checkpointed():
    model = VideoClassifier(build("timm vit"), 3, num_frames=FRAMES, tune="full")
    video = torch.rand(2, FRAMES, 3, 32, 32)
    expected = torch.autograd.grad(model(video).sum(), trainable_parameters(model))
    apply_memory_policy(model, "full")
    for a, b in zip(torch.autograd.grad(model(video).sum(), trainable_parameters(model)), expected, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="the backbone trains"):
        apply_memory_policy(model, "bf16")


def test_copies_and_unadapt():
    model, x = apply_memory_policy(adapted("timm vit"), "gelu2bit+full:0"), images()
    expected = gradients(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for adapter in get_adapters(model):
            nn.init.normal_(adapter.up_proj.weight)  # must not reach the copy
        for actual, gradient in zip(gradients(other, x), expected, strict=True):
            assert torch.equal(actual, gradient)
    unadapt(model)
    plain = build("timm vit")
    assert torch.equal(plain(x), model(x))
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", LIBRARIES)
def test_gelu2bit_is_exact_forward_and_keeps_less(name):
    model, x = adapted(name), images()
    y, kept, expected = tokens(model, x), measure_saved_memory(model, x), gradients(model, x)
    apply_memory_policy(model, "gelu2bit")
    assert torch.equal(tokens(model, x), y)
    assert measure_saved_memory(model, x) < kept
    actual = torch.cat([g.flatten() for g in gradients(model, x)])
    exact = torch.cat([g.flatten() for g in expected])
    assert not torch.equal(actual, exact)
    assert nn.functional.cosine_similarity(actual, exact, dim=0) > 0.5  # the small inputs of random weights are worst
    apply_memory_policy(model, "none")
    assert measure_saved_memory(model, x) == kept


@pytest.mark.parametrize("kind", GELUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gelu2bit_by_its_definition(kind, dtype):
    positions, values = STEPS[kind]
    for shape in ((1,), (7, 5), (3, 33_333)):
        x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
        dy = torch.randn(shape).to(dtype)
        (dx,) = torch.autograd.grad(gelu2bit(x, kind), x, dy)
        code = sum((x.detach() > position).long() for position in positions)
        slope = torch.tensor(values, dtype=dtype)[code]
        torch.testing.assert_close(dx, (dy * slope).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    torch.library.opcheck(step_codes_op, (x.detach(), positions))
    torch.library.opcheck(multiply_steps_op, (dy, step_codes_op(x.detach(), positions), values))


def test_gelu2bit_of_an_empty_batch():
    x = torch.empty(0, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(gelu2bit(x), x, torch.empty(0, 5))
    assert dx.shape == (0, 5)


def test_constants_are_derived():
    from bench.tuning.gelu2bit import fit

    for kind, gelu in GELUS.items():
        for derived, used in zip(fit(gelu), STEPS[kind], strict=True):
            # where a minimum lies is known to the root of the precision of what is least there
            assert derived == pytest.approx(used, abs=8 * torch.finfo(torch.float64).eps ** 0.5)


def test_bf16_freezes_the_backbone_alone():
    model = VideoClassifier(build("timm vit"), 3, num_frames=FRAMES, config=FEAdapterConfig(bottleneck=8))
    fingerprint = model.vit.fe_origin.fingerprint
    parameters = trainable_parameters(model)
    apply_memory_policy(model, "bf16+full")
    assert all(p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16) for p in model.parameters())
    assert all(a is b for a, b in zip(parameters, trainable_parameters(model), strict=True))
    logits = model(torch.rand(2, FRAMES, 3, 32, 32))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)
    from fe_adapter.models.origin import fingerprint as again

    assert again(model.vit) == fingerprint


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized_weights_keep_nothing_more(kind):
    pytest.importorskip("bitsandbytes")
    model, x = adapted("timm vit"), images()
    expected, kept = gradients(model, x), measure_saved_memory(model, x)
    size = sum(p.nbytes for p in model.blocks.parameters() if not p.requires_grad)
    linear = model.blocks[0].mlp.fc1
    weight = linear.weight.clone()
    apply_memory_policy(model, kind)
    packed = model.blocks[0].mlp.fc1
    # half a step of 1/127, after rounding to fp16; or half the largest gap between two values of nf4
    largest = (1 / 254 + 2**-12) if kind == "int8" else (1 - 0.6962) / 2
    assert ((packed.weight - weight).abs() <= largest * weight.abs().max()).all()
    h = torch.randn(3, 48, requires_grad=True)
    y = nn.functional.linear(h, packed.weight, linear.bias)
    torch.testing.assert_close(packed(h), y)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), h)[0] for out in (packed(h), y)))
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(h).dtype == torch.bfloat16
    other = "nf4" if kind == "int8" else "int8"
    with pytest.raises(InputError, match=f"weights are {kind} already"):
        apply_memory_policy(model, other)
    assert measure_saved_memory(model, x) <= kept
    assert sum(p.nbytes for p in model.blocks.parameters() if not p.requires_grad) < size / (3 if kind == "int8" else 5)
    actual = torch.cat([g.flatten() for g in gradients(model, x)])
    exact = torch.cat([g.flatten() for g in expected])
    assert 0 < (actual - exact).norm() / exact.norm() < (0.05 if kind == "int8" else 0.4)
    assert apply_memory_policy(model, f"bf16+{kind}").blocks[0].mlp.fc1 is packed
    assert packed.scale.dtype == torch.float32


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("before", ["", "bf16+"])
def test_the_state_dict_of_packed_weights_is_that_of_linear_layers(kind, before):
    pytest.importorskip("bitsandbytes")
    plain, x = adapted("timm vit"), images().to(torch.bfloat16 if before else torch.float32)
    if before:
        apply_memory_policy(plain, "bf16")
    names = set(plain.state_dict())
    packed = apply_memory_policy(adapted("timm vit"), before + kind)
    state = packed.state_dict()
    assert set(state) == names
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), packed(x))
    linear = packed.blocks[0].mlp.fc1
    bits = linear.packed.clone(), linear.scale.clone()
    linear.load_state_dict(nn.Linear(48, 192).state_dict())
    assert not torch.equal(linear.packed, bits[0])
    packed.load_state_dict(state)
    assert torch.equal(linear.packed, bits[0])
    torch.testing.assert_close(linear.scale, bits[1], rtol=1e-6, atol=0)
    assert not any(p.requires_grad for p in linear.parameters())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"bias": torch.zeros(2)}, 'Missing key.*"weight"'),
        ({"weight": torch.zeros(2, 4)}, 'Missing key.*"bias"'),
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(2)}, "size mismatch for weight"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2), "scale": torch.zeros(2)}, 'Unexpected key.*"scale"'),
    ],
)
def test_packed_weights_are_strict_as_linear_layers(state, message):
    pytest.importorskip("bitsandbytes")
    linear = nn.Linear(4, 2)
    for layer in (linear, PackedLinear(linear, "int8")):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)


@pytest.mark.parametrize("policy", ["bf16+nf4", "nf4+bf16"])
@pytest.mark.parametrize("name", ["timm eva", "timm beitv2", "timm eva02", "timm eva02 clip"])
def test_packed_weights_where_a_model_reads_them(name, policy):
    """timm's EVA and BEiT take products of the bare weight: it has the dtype of the others, and backward none more."""
    pytest.importorskip("bitsandbytes")
    x = images().bfloat16()
    kept = measure_saved_memory(apply_memory_policy(adapted(name), "bf16"), x)
    model = apply_memory_policy(adapted(name), policy)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert packed
    assert all(module.weight.dtype == torch.bfloat16 for module in packed)
    assert tokens(model, x).dtype == torch.bfloat16
    assert measure_saved_memory(model, x) <= kept


@pytest.mark.parametrize("name", ["timm vit", "timm dinov2 registers", "hf vit", "hf clip vision"])
def test_xformers_attention(name, monkeypatch):
    """Its kernels need a GPU; a stand-in with their interface shows that heads, scale and layout are right."""

    def stand_in(q, k, v, attn_bias=None, p=0.0, scale=None):
        calls.append(q.shape)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_bias, p, scale=scale).transpose(1, 2)

    def refuse(*_, **__):
        raise NotImplementedError(
            "No operator found for `memory_efficient_attention_forward` with inputs:\n  query ..."
        )

    calls: list[torch.Size] = []
    for module in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(memory_efficient_attention=stand_in))
    model, x = adapted(name), images()
    expected = gradients(model, x)
    apply_memory_policy(model, "xformers+full:0")
    with pytest.raises(InputError, match="'xformers' needs a GPU"):
        model(x)
    monkeypatch.setattr(xformers, "_refuse_cpu", lambda x: None)
    for actual, gradient in zip(gradients(model, x), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-5)
    assert calls
    if name.startswith("timm"):  # counted as PyTorch's, which keeps as much
        assert estimate_memory(model, *x.shape) == estimate_memory(model, *x.shape, policy="none+full:0")
    for module in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(memory_efficient_attention=refuse))
    with pytest.raises(
        InputError, match=r"^memory policy 'xformers' has no kernel here for heads of \d+ in torch.float32"
    ):
        model(x)
    apply_memory_policy(model, "none")
    calls.clear()
    gradients(model, x)
    assert not calls


@pytest.mark.parametrize("name", ["timm vit", "hf clip vision", "open_clip", "torchvision"])
def test_budget_keeps_what_xformers_solves_for(name, monkeypatch):
    """Its solver measures on a GPU; here every operator is as heavy as the others."""
    pytest.importorskip("xformers.checkpoint", exc_type=ImportError)
    mebibytes = itertools.count()
    for function, stand_in in {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: next(mebibytes) * 2**20,
    }.items():
        monkeypatch.setattr(torch.cuda, function, stand_in)
    monkeypatch.setattr(xformers, "_refuse_measuring", lambda x: None)
    model, x = adapted(name), images()
    expected = gradients(model, x)
    plain, kept = measure_saved_memory(model, x), []
    for share in (0, 0.2, 1):
        apply_memory_policy(model, f"none+budget={share}")
        for _ in range(2):
            for actual, gradient in zip(gradients(model, x), expected, strict=True):
                assert torch.equal(actual, gradient)
        measured = next(mebibytes)
        kept.append(measure_saved_memory(model, x))
        assert next(mebibytes) == measured + 1  # solved in the first step, used in all
    assert kept[0] < kept[1] < kept[2]
    assert kept[0] < plain
    apply_memory_policy(model, "none")
    assert measure_saved_memory(model, x) == plain


def test_budget_is_measured_on_a_gpu():
    pytest.importorskip("xformers.checkpoint", exc_type=ImportError)
    model = apply_memory_policy(adapted("timm vit"), "budget=0.3:0+full:1")
    with pytest.raises(InputError, match="times the operators of a block on a GPU"):
        model(images())


@pytest.mark.parametrize("policy", ["xformers", "budget=0.3"])
def test_xformers_has_to_be_there(policy, monkeypatch):
    for module in ("xformers.ops", "xformers.checkpoint"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="needs xFormers"):
        apply_memory_policy(adapted("timm vit"), policy)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # where `offload` breaks graphs
@pytest.mark.parametrize("policy", ["full", "selective", "offload", "gelu2bit", "gelu2bit+full:0", "int8", "nf4"])
def test_policies_compile(policy):
    if policy in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    model, x = adapted("timm vit"), images()
    apply_memory_policy(model, policy)
    expected = gradients(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for actual, gradient in zip(gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "blocks", "message"),
    [
        ("fast", None, "'fast' is none of none, selective"),
        ("full:0-2", None, "names block 2, but the model has 2 blocks"),
        ("full", [5], "names block 5"),
        ("full:a", None, "blocks are written 0-7 or 0,2,4"),
        ("full+selective", None, "'full' and 'selective' exclude each other on block 0"),
        ("recompute_input+recompute_hidden:1", None, "exclude each other on block 1"),
        ("bf16:0", None, "is for the whole model; it takes no blocks"),
        ("full+bf16:0", None, "is for the whole model; it takes no blocks"),
        ("full:1-0", None, "is given no blocks"),
        ("full", [], "is given no blocks"),
        ("full+none", None, "can only come first"),
        (None, None, "is no name"),
        (5, None, "is no name"),
    ],
)
def test_bad_policies(policy, blocks, message):
    model = adapted("timm vit")
    with pytest.raises(InputError, match=message):
        apply_memory_policy(model, policy, blocks)
    assert not any(block.fe_state.around for block in model.blocks)  # nothing is half done


def test_gelu2bit_needs_a_gelu():
    model = adapted("timm eva02")
    with pytest.raises(InputError, match="no block has a GELU"):
        apply_memory_policy(model, "full+gelu2bit")
    assert not any(block.fe_state.around for block in model.blocks)


@pytest.mark.parametrize("positions", [("attn",), ("mlp",), ("attn", "mlp")])
@pytest.mark.parametrize("policy", ["full", "selective", "offload", "gelu2bit"])
def test_before_adapt_is_as_after(policy, positions):
    config = FEAdapterConfig(bottleneck=8, positions=positions)
    before = adapt(apply_memory_policy(build("timm vit"), policy), config, num_frames=FRAMES)
    after = adapted("timm vit", positions=positions)
    before.load_state_dict(after.state_dict())
    apply_memory_policy(after, policy)
    for a, b in zip(gradients(before, images()), gradients(after, images()), strict=True):
        assert torch.equal(a, b)
