"""The registered operators, the choice of a backend, and the refusal of bad input."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
import sys
import threading
import types
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.utils.flop_counter import FlopCounterMode

from bench.proof.agreement import pair
from fe_adapter import FEAdapter, FEAdapterConfig, FusedFEAdapter, functional
from fe_adapter.errors import InputError
from fe_adapter.kernels import spec as specs
from fe_adapter.kernels import support
from fe_adapter.kernels.spec import AdapterSpec, Kept, Weights
from fe_adapter.ops import direct, dispatch


def arguments(layer: FusedFEAdapter, x: torch.Tensor, recompute: str | None) -> tuple:
    dilation = {"dynamic": (1, 1, 1), 2: (2, 1, 1)}.get(layer.dilation, layer.dilation)
    grid = layer.grid_size or (x.shape[2] - 1, 1)
    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    spec = dilation, None, layer.causal, layer.activation, 1, grid, x.dtype
    return x, weights, x.shape[1], *spec, recompute, True, "eager"


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2},
        {"dilation": "dynamic"},
        {"dilation": "dynamic", "causal": True},
        {"dilation": (2, 1, 2), "kernel_size": (3, 3, 3), "grid_size": (2, 2)},
    ],
    ids=["static", "dynamic", "causal", "spatial"],
)
@pytest.mark.parametrize("recompute", [None, "hidden", "input"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own making
def test_opcheck(options, recompute):
    _, layer = pair(6, 4, num_frames=3, activation="gelu", **options)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.fe_adapter.adapter_forward.default, arguments(layer, x, recompute))


def test_opcheck_of_the_backward_operator():
    _, layer = pair(6, 4, num_frames=3)
    x, dy = torch.randn(2, 2, 3, 5, 6)
    h = torch.randn(2, 3, 4, 4)
    weights = [p.detach() for p in layer.parameters()]
    arguments = (dy, x, None, h, None, weights, 3, (1, 1, 1), None, False, "identity", 1, (4, 1), x.dtype)
    torch.library.opcheck(torch.ops.fe_adapter.adapter_backward.default, (*arguments, "eager", True))


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("shape", [(6, 5, 6), (2, 3, 5, 6), (0, 5, 6)], ids=str)
@pytest.mark.parametrize("is_traced", [False, True], ids=["direct", "operator"])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_the_output_is_no_view(cls, shape, is_traced, has_gradient):
    with torch.set_grad_enabled(has_gradient), FlopCounterMode(display=False) if is_traced else nullcontext():
        y = cls(6, 4, num_frames=3, dilation=1)(torch.randn(shape, requires_grad=True))
    assert y.shape == shape
    assert not y._is_view()
    y += torch.ones((), requires_grad=True)
    assert y.requires_grad


@pytest.mark.parametrize("dilation", [2, "dynamic"])
def test_calls_leave_nothing_to_later_ones_of_their_kind(dilation):
    """Small rows between the products stay allocated: neither values, nor inference, nor a failure may stay in them."""
    _, layer = pair(6, 4, num_frames=3, dilation=dilation)
    clips, dy = torch.randn(5, 3, 5, 6), torch.randn(3, 5, 6)

    def results(x):
        x = x.clone().requires_grad_()
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    with torch.inference_mode():
        layer(torch.full((3, 5, 6), torch.nan))
    expected = [results(x) for x in clips]
    results(torch.full((3, 5, 6), torch.inf))
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for _ in range(20):
            for found, wanted in zip(pool.map(results, clips), expected, strict=True):
                assert all(map(torch.equal, found, wanted))
    with mock.patch.object(torch, "baddbmm", side_effect=RuntimeError), pytest.raises(RuntimeError):
        results(clips[0])
    assert all(map(torch.equal, results(clips[0]), expected[0]))


@pytest.mark.parametrize(
    "moved",
    [lambda kept: kept.new_empty((*kept.shape, 2))[..., 1].copy_(kept), torch.Tensor.double],
    ids=["strides", "dtype"],
)
@pytest.mark.parametrize("recompute", [None, "hidden", "input"])
def test_what_is_kept_may_come_back_otherwise(recompute, moved):
    """Hooks on saved tensors, as of offloading, may give them other strides, another start and another dtype."""
    _, layer = pair(6, 4, num_frames=3, recompute=recompute)
    x, dy = torch.randn(2, 3, 5, 6).unbind()
    wanted = torch.autograd.grad(layer(x), list(layer.parameters()), dy)
    with torch.autograd.graph.saved_tensors_hooks(moved, lambda kept: kept):
        y = layer(x)
    for a, b in zip(torch.autograd.grad(y, list(layer.parameters()), dy), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("watch", ["fake", "subclass", "gradient", "functorch", "traced"])
@pytest.mark.parametrize("is_free", [True, False], ids=["rows-free", "rows-in-use"])
def test_who_watches_a_backward_pass_leaves_nothing_in_later_ones(watch, is_free):
    """Modes and transforms get the operator, as in forward; a tensor subclass, rows of its own."""
    _, layer = pair(6, 4, num_frames=3)
    x, dy = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 6)
    inputs = [x, *layer.parameters()]

    def unpacked(kept):
        return LoggingTensor(kept.detach()) if watch == "subclass" else kept

    expected = torch.autograd.grad(layer(x), inputs, dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, unpacked):
        y = layer(x)
    if not is_free:  # as if another thread had them
        y.grad_fn.call.backward.__self__._rows.clear()
    with FakeTensorMode(allow_non_fake_inputs=True) if watch == "fake" else nullcontext():
        if watch == "functorch":
            found = torch.func.grad(lambda z: (torch.autograd.grad(y, x, dy)[0] * z).sum())(dy)
        elif watch == "traced":
            found = make_fx(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(dy)(dy)
        else:
            found, *_ = torch.autograd.grad(y, inputs, LoggingTensor(dy) if watch == "gradient" else dy)
    assert watch == "fake" or torch.equal(found, expected[0])
    for later, wanted in zip(torch.autograd.grad(layer(x), inputs, dy), expected, strict=True):
        assert type(later) is torch.Tensor
        assert torch.equal(later, wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of forward-mode derivatives
def test_a_tangent_of_the_output_s_gradient_is_refused():
    _, layer = pair(6, 4, num_frames=3)
    x = torch.randn(3, 5, 6, requires_grad=True)
    y = layer(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.autograd.grad(y, x, forward_ad.make_dual(x.detach(), x.detach()))


def test_an_output_changed_in_place_is_not_computed_with():
    _, layer = pair(6, 4, num_frames=3, dilation=1)
    layer.recompute = "input"  # keeps the output
    y = layer(torch.randn(6, 5, 6))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    _, layer = pair(6, 4, num_frames=3)
    x = torch.randn(3, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once; for second derivatives use FEAdapter"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch.func.jvp
@pytest.mark.parametrize("trained", [True, False])
def test_a_forward_mode_derivative_is_refused_not_zero(trained):
    plain, layer = pair(6, 4, num_frames=3)
    x = torch.randn(3, 5, 6)
    layer.requires_grad_(trained)
    message = "no forward-mode derivative; FEAdapter, its plain PyTorch form, has"
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(layer, (x,), (x,))
    with forward_ad.dual_level():
        layer(x)  # nothing to differentiate
        with pytest.raises(RuntimeError, match=message):
            layer(forward_ad.make_dual(x, x))
    assert torch.func.jvp(plain, (x,), (x,))[1].count_nonzero() == x.numel()


def test_a_layer_without_memory_gives_shapes():
    layer = FusedFEAdapter(6, 4, num_frames=2, device="meta")
    assert layer(torch.empty(2, 5, 6, device="meta")).shape == (2, 5, 6)


@pytest.mark.parametrize("dilation", ["dynamic", (2, 1, 2)])
def test_compiled_once_for_any_number_of_patches(dilation):
    _, layer = pair(8, 4, num_frames=2, kernel_size=(3, 3, 3), dilation=dilation)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_patches in (4, 9, 16):
        x = torch.randn(2, 1 + num_patches, 8)
        torch.testing.assert_close(compiled(x), layer(x))


def test_auto_falls_back_and_says_so_once(caplog):
    dispatch._log_fall_back.cache_clear()
    layer = FusedFEAdapter(6, 4, num_frames=2)
    with caplog.at_level(logging.INFO, logger="fe_adapter"):
        for _ in range(2):
            layer(torch.randn(2, 5, 6))
    assert len(caplog.records) == 1
    assert "eager backend" in caplog.text
    assert "not on a GPU" in caplog.text


def test_triton_is_refused_with_every_reason():
    layer = FusedFEAdapter(6, 4, num_frames=2, backend="triton", dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"cannot run here: .*not on a GPU; torch\.float64 is not supported"):
        layer(torch.randn(2, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        ({"__version__": "3.2.0"}, "Triton 3.2.0 is older than 3.6"),
        ({}, "Triton is not installed or cannot be imported"),  # a folder of that name imports, too
    ],
)
def test_triton_that_is_old_or_broken_is_a_reason_like_others(monkeypatch, stub, reason):
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(**stub))
    monkeypatch.setattr(support, "_problem_of_triton", support._problem_of_triton.__wrapped__)
    x = torch.randn(2, 5, 6)
    assert FusedFEAdapter(6, 4, num_frames=2)(x).shape == x.shape
    with pytest.raises(RuntimeError, match=f"{reason}; the tensors are on cpu"):
        FusedFEAdapter(6, 4, num_frames=2, backend="triton")(x)


def test_the_environment_replaces_auto_only(monkeypatch):
    x = torch.randn(2, 5, 6)
    monkeypatch.setenv("FE_ADAPTER_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=r"FE_ADAPTER_BACKEND=triton cannot run here: .* Use auto or eager"):
        FusedFEAdapter(6, 4, num_frames=2)(x)
    FusedFEAdapter(6, 4, num_frames=2, backend="eager")(x)
    monkeypatch.setenv("FE_ADAPTER_BACKEND", "cuda")
    with pytest.raises(InputError, match="FE_ADAPTER_BACKEND='cuda' is not one of 'auto', 'triton', 'eager'"):
        FusedFEAdapter(6, 4, num_frames=2)(x)
    monkeypatch.delenv("FE_ADAPTER_BACKEND")
    monkeypatch.setenv("FE_ADAPTER_DESIGN", "fast")
    with pytest.raises(InputError, match="FE_ADAPTER_DESIGN='fast' is not one of 'fused', 'gemm'"):
        FusedFEAdapter(6, 4, num_frames=2)(x)


BAD_OPTIONS = [
    ({"kernel_size": 4}, "even size 4"),
    ({"kernel_size": 0}, "kernel_size=0 is too small"),
    ({"kernel_size": (3, 3)}, "2 sizes; give K or"),
    ({"kernel_size": (3, 2, 3)}, "even size 2"),
    ({"dilation": 0}, "dilation=0 is too small"),
    ({"dilation": "auto"}, "'auto' is neither 'dynamic' nor a number"),
    ({"dilation": 1, "max_dilation": 2.0}, "bounds a dynamic dilation"),
    ({"dilation": (1, 0, 1), "kernel_size": (3, 3, 3)}, "dilation=0 is too small"),
    ({"dilation": (1, 2, 2), "kernel_size": (3, 3, 3), "max_dilation": 2.0}, "bounds a dynamic dilation"),
    ({"max_dilation": -1.0}, "max_dilation=-1.0 is no positive number"),
    ({"bottleneck": 0}, "bottleneck=0 is too small"),
    ({"activation": "tanh"}, "'tanh' is not one of"),
    ({"recompute": "all"}, "'all' is not one of"),
    ({"backend": "cuda"}, "'cuda' is not one of"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_by_layers_and_config(options, message):
    with pytest.raises(ValueError, match=message):
        FEAdapterConfig(**options)
    for cls in (FEAdapter, FusedFEAdapter):
        with pytest.raises(ValueError, match=message):
            cls(16, **{"num_frames": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 is too small"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens=-1 is too small"),
        ({"embed_dim": 0}, "embed_dim=0 is too small"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FusedFEAdapter(**{"embed_dim": 8, "num_frames": 4, **options})


@pytest.mark.parametrize(
    ("dilation", "kernel_size", "message"),
    [
        (
            (1, 2, 1),
            3,
            r"dilation=\(1, 2, 1\) spreads taps over .* grid, where kernel_size=\(3, 1, 1\) has none",
        ),
        ((1, 2, 2, 2), (3, 3, 3), r"dilation=\(1, 2, 2, 2\) has 4 entries; give frames, or \(t, h, w\)"),
        ([2, 2], (3, 3, 3), r"dilation=\(2, 2\) has 2 entries"),
        ((), (3, 3, 3), r"dilation=\(\) has 0 entries"),
    ],
)
def test_a_layer_refuses_a_dilation_that_does_not_fit(dilation, kernel_size, message):
    """A config reads some of these as one number for each block, and refuses the others, too."""
    for cls in (FEAdapter, FusedFEAdapter):
        with pytest.raises(InputError, match=message):
            cls(8, num_frames=4, dilation=dilation, kernel_size=kernel_size)
    weights = [*FEAdapter(8, 4, num_frames=4, dilation=1, kernel_size=kernel_size).parameters()]
    with pytest.raises(InputError, match=message):
        functional.adapter(torch.zeros(4, 5, 8), *weights, num_frames=4, dilation=dilation)


SPATIAL = {"kernel_size": (3, 3, 3)}


@pytest.mark.parametrize(
    "options",
    [
        {"bottleneck": 2.5},
        {"kernel_size": "3"},
        {"dilation": 1.5},
        {"dilation": True},
        {"dilation": (1, 1.0, 1), **SPATIAL},
        {"dilation": (True, 1, 1), **SPATIAL},
        {"dilation": (1, "dynamic", 1), **SPATIAL},
    ],
)
def test_counts_must_be_integers(options):
    with pytest.raises(TypeError, match="is not an integer"):
        FusedFEAdapter(8, num_frames=4, **options)
    with pytest.raises(TypeError, match="is not an integer"):
        FEAdapterConfig(**options)


BAD_INPUTS = [
    (torch.zeros(7, 5, 8), {}, ValueError, "num_frames=4 does not divide batch 7"),
    (torch.zeros(8, 5, 8), {"num_frames": 3}, ValueError, "num_frames=3 does not divide batch 8"),
    (torch.zeros(8, 5, 8), {"num_frames": 0}, ValueError, "num_frames=0 is too small"),
    (torch.zeros(2, 4, 5, 8), {"num_frames": 2}, ValueError, "num_frames=2, but x .* has T=4"),
    (torch.zeros(2, 0, 5, 8), {}, ValueError, "has no frames"),
    (torch.zeros(8, 5, 9), {}, ValueError, "x has width 9, but .* embed_dim=8"),
    (torch.zeros(8, 8), {}, ValueError, "x has 2 dimensions"),
    (torch.zeros(1, 2, 4, 5, 8), {}, ValueError, "x has 5 dimensions"),
    (torch.zeros(8, 1, 8), {}, ValueError, "num_prefix_tokens=1 leaves no patch tokens of the 1 tokens"),
    (torch.zeros(8, 5, 8, dtype=torch.float64), {}, TypeError, "float64 mixes with nothing else"),
    (torch.zeros(8, 5, 8, dtype=torch.long), {}, TypeError, "x is torch.int64"),
    (torch.zeros(8, 5, 8, dtype=torch.complex64), {}, TypeError, "x is torch.complex64"),
]


@pytest.mark.parametrize(("x", "options", "error", "message"), BAD_INPUTS)
@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_bad_inputs_are_refused(cls, x, options, error, message):
    with pytest.raises(error, match=message):
        cls(8, 4, num_frames=4)(x, **options)


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_parameters_elsewhere_are_refused(cls):
    with pytest.raises(ValueError, match=r"parameters are on several devices \(cpu, meta\)"):
        cls(8, 4, num_frames=4, device="meta")(torch.randn(4, 3, 8))


def test_a_clip_beyond_32_bits_is_for_the_eager_backend():
    x = torch.empty(1, 2**12, 2**12, 8, device="meta")
    layer = FusedFEAdapter(8, 128, num_frames=2**12, backend="triton", device="meta")
    spec = AdapterSpec((1, 1, 1), None, "identity", 1, (2**12 - 1, 1), torch.float32)
    weights = Weights(*layer.parameters())
    with pytest.raises(RuntimeError, match=r"\(T, L, R\) = \(4096, 4096, 128\) needs offsets of more than 32 bits"):
        dispatch.choose("triton", x, weights, spec)
    assert dispatch.choose("auto", x, weights, spec).name == "eager"


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_bad_parameter_dtypes_are_refused(cls):
    layer = cls(8, 4, num_frames=4)
    layer.up_proj.to(torch.bfloat16)
    with pytest.raises(TypeError, match=r"several dtypes \(torch.bfloat16, torch.float32\)"):
        layer(torch.zeros(4, 5, 8))
    integers = {name: torch.zeros(p.shape, dtype=torch.int32) for name, p in layer.named_parameters()}
    with pytest.raises(TypeError, match=r"parameters are torch\.int32; they must be floating point"):
        torch.func.functional_call(layer, integers, (torch.zeros(4, 5, 8),))


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
def test_a_spatial_kernel_needs_the_grid(cls):
    x = torch.zeros(4, 7, 8)
    with pytest.raises(ValueError, match="2x2 is not 6 patches; pass grid_size"):
        cls(8, 4, num_frames=4, kernel_size=(3, 3, 3))(x)
    with pytest.raises(ValueError, match="4x2 is not 6 patches"):
        cls(8, 4, num_frames=4, kernel_size=(3, 3, 3), grid_size=(4, 2))(x)


def test_functional_refuses_what_does_not_fit():
    layer = FEAdapter(8, 4, num_frames=4, dilation=1)
    weights = list(layer.parameters())
    x = torch.zeros(4, 5, 8)
    with pytest.raises(ValueError, match="'dynamic' needs both, a number none"):
        functional.adapter(x, *weights, num_frames=4, dilation="dynamic")
    with pytest.raises(ValueError, match="does not say how many frames"):
        functional.adapter(x, *weights, num_frames=None)
    for grid_size in ((-2, -3), (5,), 5):
        with pytest.raises(InputError, match="grid_size="):
            functional.adapter(x, *weights, num_frames=4, grid_size=grid_size)
    weights[4] = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"the up parameter has shape \(4, 8\); R=4 and D=8 need \(8, 4\)"):
        functional.adapter(x, *weights, num_frames=4)


WRONG = [  # which weight, what it is, what is said of it
    (0, torch.empty(4, 8, device="meta"), r"on several devices \(cpu, meta\)"),
    (0, None, "the down parameter is a NoneType"),
    (2, torch.zeros(4, 1, 3, 1, 1).numpy(), "the conv parameter is a ndarray"),
    (4, torch.zeros(8, 4).to_sparse(), "must be dense tensors"),
    (7, torch.zeros(1), "'dynamic' needs both, a number none"),
    (6, torch.zeros(3, 4), "'dynamic' needs both, a number none"),
]


@pytest.mark.parametrize(("index", "wrong", "message"), WRONG)
@pytest.mark.parametrize("is_settled", [False, True])
def test_a_wrong_weight_is_refused_whatever_was_called_before(index, wrong, message, is_settled):
    x, R = torch.zeros(4, 5, 8), 4
    shapes = (R, 8), (R,), (R, 1, 3, 1, 1), (R,), (8, R), (8,)
    weights = [*map(torch.zeros, shapes), None, None]

    def call():
        *six, dilation, dilation_bias = weights
        return functional.adapter(x, *six, dilation_weight=dilation, dilation_bias=dilation_bias, num_frames=4)

    direct._kept.clear()
    if is_settled:
        call()
    weights[index] = wrong
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_tensor_is_no_count():
    with pytest.raises(TypeError, match="is not an integer"):
        functional.adapter(
            torch.zeros(4, 5, 8),
            *FEAdapter(8, 4, num_frames=4, dilation=1).parameters(),
            num_frames=4,
            dilation=torch.tensor(2),
        )


PER_BLOCK = [  # dilation, kernel_size, blocks, what each block gets
    ("dynamic", 3, 2, ["dynamic"] * 2),
    (2, 3, 3, [2, 2, 2]),
    ((1, 1, 2), 3, 3, [1, 1, 2]),
    ([1, 1, 2, 2], (3, 1, 1), 4, [1, 1, 2, 2]),
    ((2,), (3, 3, 3), 1, [2]),
    ([1, 2, 4, 4], (3, 3, 3), 4, [1, 2, 4, 4]),
    ([1, 2, 3], (3, 3, 3), 4, [(1, 2, 3)] * 4),
    ([[1, 2, 3], 2], [3, 3, 3], 2, [(1, 2, 3), 2]),
    ([[1, 2, 3], [1, 1, 1], 2], (3, 3, 3), 3, [(1, 2, 3), (1, 1, 1), 2]),
]


@pytest.mark.parametrize(("dilation", "kernel_size", "num_blocks", "expected"), PER_BLOCK)
def test_config_gives_every_block_its_dilation(dilation, kernel_size, num_blocks, expected):
    config = FEAdapterConfig(dilation=dilation, kernel_size=kernel_size)
    assert config.dilations(num_blocks) == expected
    again = FEAdapterConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)
    for each in expected:
        FEAdapter(8, num_frames=2, kernel_size=kernel_size, dilation=each)


@pytest.mark.parametrize(
    ("dilation", "kernel_size", "num_blocks", "message"),
    [
        ((1, 1, 2, 2), 3, 6, "dilation names 4 blocks, but 6 are adapted"),
        ((1, 1, 2), 3, 2, "dilation names 3 blocks, but 2 are adapted"),
        ((1, 2), (3, 3, 3), 3, "dilation names 2 blocks, but 3 are adapted"),
        (((1, 2, 2), (1, 2, 2)), (3, 3, 3), 3, "dilation names 2 blocks, but 3 are adapted"),
        ((1, 2, 2), (3, 3, 3), 3, r"dilation=\(1, 2, 2\) is one .* write one \(t, h, w\) per block"),
    ],
)
def test_config_refuses_other_numbers_of_blocks(dilation, kernel_size, num_blocks, message):
    config = FEAdapterConfig(dilation=dilation, kernel_size=kernel_size)
    with pytest.raises(InputError, match=message) as refusal:
        config.dilations(num_blocks)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("dilation", "kernel_size", "error", "message"),
    [
        ((), 3, InputError, "names no block"),
        ((1, 0), 3, InputError, "dilation=0 is too small"),
        ((1, 1.5), 3, TypeError, "dilation=1.5 is not an integer"),
        ((1, True), 3, TypeError, "dilation=True is not an integer"),
        ((1, "dynamic"), 3, InputError, "'dynamic' is for all blocks"),
        (((1, 2, 2), 1), 3, InputError, "spreads taps over the patch grid"),
        (((1, 2, 2, 2), 1), (3, 3, 3), InputError, "has 4 entries"),
        (((1, 2, 0), 1), (3, 3, 3), InputError, "dilation=0 is too small"),
        (((1, 2, (1,)), 1), (3, 3, 3), TypeError, r"dilation=\(1,\) is not an integer"),
        (None, 3, TypeError, "dilation=None is not an integer"),
    ],
)
def test_config_refuses_bad_dilations(dilation, kernel_size, error, message):
    with pytest.raises(error, match=message) as refusal:
        FEAdapterConfig(dilation=dilation, kernel_size=kernel_size)
    assert "\n" not in str(refusal.value)


def test_config_round_trips_and_knows_the_published_forms():
    assert FEAdapterConfig(positions="mlp").positions == ("mlp",)
    from_json = FEAdapterConfig(kernel_size=[3, 1, 1], blocks=[0, -1])
    assert from_json == FEAdapterConfig(kernel_size=(3, 1, 1), blocks=(0, -1))
    form = FEAdapterConfig.st_adapter("24x384")
    assert (form.positions, form.bottleneck, form.kernel_size, form.dilation) == (("attn", "mlp"), 384, 3, 1)
    assert FEAdapterConfig.st_adapter().positions == ("mlp",)
    with pytest.raises(InputError, match="'36x384' is not one of"):
        FEAdapterConfig.st_adapter("36x384")
    with pytest.raises(InputError, match="must name 'attn', 'mlp' or both"):
        FEAdapterConfig(positions=())
    with pytest.raises(InputError, match="at least one block, each once"):
        FEAdapterConfig(blocks=(1, 1))


def test_two_threads_settle_kinds_of_calls_at_once(monkeypatch):
    class Watched(Kept):
        def __iter__(self):
            oldest = super().__iter__()
            if not other.is_alive():
                other.start()
                other.join(0.1)  # in which it is done, if nothing holds it up
            return oldest

    monkeypatch.setattr(specs, "MOST_KINDS", 2)
    kept = Watched(a=1, b=2, e=3)
    other = threading.Thread(target=kept.keep, args=("d", 4))
    kept.keep("c", 3)
    other.join()
    assert dict(kept) == {"c": 3, "d": 4}
