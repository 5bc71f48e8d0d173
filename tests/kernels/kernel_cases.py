"""What `tests.kernels.test_interpreter` runs in Triton's interpreter, in one process: every case by name."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.proof.agreement import RECOMPUTED_SLACK, assert_within, expect, forward_backward, pair, share_weights
from bench.proof.checks import operators, steps_of_gelu2bit
from fe_adapter import FEAdapter, FusedFEAdapter, estimate_memory
from fe_adapter.kernels.common import rounded
from fe_adapter.kernels.spec import DESIGNS, PAD, AdapterSpec, Weights
from fe_adapter.ops import operator
from fe_adapter.ops.gelu2bit import gelu2bit
from tests.kernels.interpreter import memory_checks, run_time_ranges

CASES: dict[str, Callable[[], None]] = {}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def check(
    design: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int, int],
    *,
    stream: torch.dtype | None = None,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    prepare: Callable[[FEAdapter], None] | None = None,
    twice: bool = False,
    **options,
) -> None:
    """Output and every gradient within the rounding of ``dtype``, prefix tokens bit-identical.

    ``twice``: a second run gives all bits.
    """
    B, T, N, P, D, R = shape
    os.environ["FE_ADAPTER_DESIGN"] = design
    options = {"num_frames": T, "num_prefix_tokens": P, **options}
    recompute = options.pop("recompute", None)
    exact, _ = pair(D, R, dtype=torch.float64, **options)
    if prepare is not None:
        with torch.no_grad():
            prepare(exact)
    layer = FusedFEAdapter(D, R, backend="triton", recompute=recompute, dtype=dtype, **options)
    share_weights(exact, layer)
    x, dy = (change(z) for z in torch.randn(2, B * T, P + N, D).to(stream or dtype))
    with memory_checks(), torch.autocast("cpu", dtype, enabled=stream is not None):
        actual = forward_backward(layer, x, dy)
    if twice:
        again = forward_backward(layer, x, dy)
        assert all(torch.equal(value, again[name]) for name, value in actual.items()), "two runs differ"
    for name, source in (("y", x), ("x", dy)):
        assert torch.equal(actual[name][:, :P], source[:, :P]), f"prefix tokens of {name}"
    assert_within(actual, expect(exact, x, dy, dtype), RECOMPUTED_SLACK if recompute == "input" else 1)


SHAPES = {  # (B, T, N, P, D, R): around the tiles of 16 rows and columns, and primes
    "small": (2, 4, 5, 1, 24, 20),
    "ones": (1, 1, 1, 0, 1, 1),
    "odd": (2, 5, 7, 5, 33, 17),
    "tile": (1, 4, 4, 1, 16, 16),
    "long": (1, 16, 2, 2, 15, 31),
    "wide": (1, 2, 3, 1, 16, 48),  # more than two tiles of R: two passes of resident over x
}
FORMS = {
    "static": {"dilation": 1},
    "dilated": {"dilation": 7, "kernel_size": 5, "activation": "silu"},
    "dynamic": {"dilation": "dynamic", "activation": "gelu"},
    "causal": {"dilation": 2, "kernel_size": 5, "causal": True},
    "causal dynamic": {"dilation": "dynamic", "max_dilation": 2.5, "causal": True, "activation": "silu"},
    "wide dynamic": {"dilation": "dynamic", "kernel_size": 5, "max_dilation": 1.5, "activation": "relu"},
}
for _design in DESIGNS:
    shares_code = _design in ("resident", "tail")  # all but the products is that of fused
    for _name, _shape in SHAPES.items():
        for _form, _options in list(FORMS.items())[:: 2 if shares_code else 1]:
            CASES[f"{_design}, fp32, {_name}, {_form}"] = functools.partial(
                check, _design, torch.float32, _shape, **_options
            )
    for _dtype in ("bf16", "fp16"):
        for _form in ("static", "dynamic"):
            CASES[f"{_design}, {_dtype}, odd, {_form}"] = functools.partial(
                check, _design, DTYPES[_dtype], SHAPES["odd"], twice=True, **FORMS[_form]
            )
    CASES[f"{_design}, bf16 in an fp32 stream"] = functools.partial(
        check, _design, torch.bfloat16, SHAPES["small"], stream=torch.float32, dilation="dynamic"
    )
    for _recompute in ("hidden", "input"):
        CASES[f"{_design}, recompute {_recompute}"] = functools.partial(
            check, _design, torch.float32, SHAPES["small"], recompute=_recompute, dilation=2
        )
    LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sliced": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], -1)[..., : x.shape[-1]],
        "sliced, not aligned": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
        "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "features apart": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "lazily negated": torch._neg_view,  # as the imaginary part of a conjugate is
    }
    for _layout, _change in LAYOUTS.items():
        CASES[f"{_design}, {_layout} x and dy"] = functools.partial(
            check, _design, torch.float32, SHAPES["wide"], change=_change, dilation=1
        )
    DILATIONS = {"nearly vanishing": -8.0, "beyond both ends": 9.0, "whole frames": 0.0, "two whole frames": 1.0}
    for _dilation, _bias in ({} if shares_code else DILATIONS).items():
        CASES[f"{_design}, dilation {_dilation}"] = functools.partial(
            check,
            _design,
            torch.float32,
            SHAPES["small"],
            dilation="dynamic",
            prepare=lambda layer, bias=_bias: (
                layer.dilation_proj.weight.zero_(),
                layer.dilation_proj.bias.fill_(bias),
            ),
        )
for _kernel, _form, _dtype, _prefixes in (
    ((3, 3, 3), "dynamic", "fp32", 1),
    ((1, 3, 5), "static", "fp32", 1),
    ((3, 5, 1), "dilated", "fp32", 1),
    ((3, 1, 5), "wide dynamic", "bf16", 0),
    ((5, 3, 1), "dynamic", "fp16", 5),
    ((3, 3, 3), "static", "bf16", 5),
):
    _options = {**FORMS[_form], "kernel_size": _kernel, "grid_size": (3, 2)}
    CASES[f"gemm, {_dtype}, spatial {_kernel}, {_form}"] = functools.partial(
        check, "gemm", DTYPES[_dtype], (1, 3, 6, _prefixes, 17, 18), twice=True, **_options
    )
for _kernel, _distances, _dtype, (_T, _H, _W), _activation in (
    ((3, 3, 3), (1, 2, 1), "fp32", (3, 5, 3), "identity"),
    ((3, 3, 3), (2, 1, 3), "bf16", (4, 3, 7), "silu"),
    ((1, 5, 3), (3, 2, 2), "fp16", (2, 7, 5), "identity"),
    ((5, 1, 3), (2, 4, 2), "fp32", (7, 2, 5), "gelu"),
    ((3, 3, 5), (9, 8, 7), "bf16", (3, 4, 2), "relu"),  # beyond the clip and the grid
    ((3, 3, 3), (2, 2, 2), "fp32", (1, 1, 6), "identity"),
):
    CASES[f"gemm, {_dtype}, spatial {_kernel}, dilation {_distances}"] = functools.partial(
        check, "gemm", DTYPES[_dtype], (1, _T, _H * _W, 1, 17, 18), twice=True, kernel_size=_kernel,
        dilation=_distances, activation=_activation, grid_size=(_H, _W),
    )  # fmt: skip


@triton.jit
def _round_kernel(p_x, p_y, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    tl.store(p_y + o, rounded(tl.load(p_x + o), p_y.dtype.element_ty))


@case
def rounding_to_bf16_is_to_nearest_even() -> None:
    """All bits of PyTorch, at every exponent, sign and last bit, and however the 16 lacking bits lie; to infinity too.

    Left out is what Triton's interpreter itself stores wrongly in bf16: subnormals, and NaNs that live in the lacking
    bits alone.
    """
    lacking = torch.tensor([0, 1, 0x1000, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF])
    bits = (torch.arange(0x10000).view(-1, 1) << 16 | lacking).flatten()
    x = torch.where(bits < 2**31, bits, bits - 2**32).int().view(torch.float32)
    x[(x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)] = 0
    x[x.isnan()] = torch.nan
    y = torch.empty_like(x, dtype=torch.bfloat16)
    _round_kernel[(1,)](x, y, SIZE=x.numel())
    assert torch.equal(y.isnan(), x.isnan())
    is_number = ~x.isnan()
    assert torch.equal(y[is_number].view(torch.int16), x.to(torch.bfloat16)[is_number].view(torch.int16))


@case
def step_codes_and_slopes() -> None:
    with memory_checks():
        steps_of_gelu2bit(torch.device("cpu"), shapes=((1,), (3, 7), (2, 1031)))


def sweep(dtypes: list[str], examples: int) -> None:
    """Random shapes, designs and forms, and spatial kernels where a design has them."""
    from hypothesis import Phase, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(
        st.sampled_from(DESIGNS), st.sampled_from(dtypes), st.integers(1, 2), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 5), st.integers(0, 5), st.integers(4, 19), st.integers(4, 37),
        st.sampled_from([1, 2, "dynamic"]), st.sampled_from(["identity", "gelu", "silu"]),
        st.sampled_from([1, 3, 3, 5, 7]), st.sampled_from([(3, 1, 1), (3, 3, 3), (1, 3, 5), (3, 1, 5)]),
        st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (9, 9)]),
    )  # fmt: skip
    def run(design, dtype, B, T, H, W, P, D, R, dilation, activation, taps, kernel, apart):
        if design == "gemm" and kernel[1:] != (1, 1) and dilation != "dynamic":
            dilation = (dilation, *apart)
        check(
            design, DTYPES[dtype], (B, T, H * W, P, D, R), dilation=dilation, activation=activation,
            kernel_size=kernel if design == "gemm" else taps, grid_size=(H, W),
        )  # fmt: skip

    run()


@case
def random_shapes():
    sweep(list(DTYPES), 24)


SLOW_CASES = {f"200 random shapes, {_dtype}": functools.partial(sweep, [_dtype], 200) for _dtype in DTYPES}


def layer_and_input(**options) -> tuple[FusedFEAdapter, torch.Tensor]:
    _, layer = pair(8, 6, num_frames=2, backend="triton", **options)
    return layer, torch.randn(4, 5, 8)


@case
def no_gradient_of_x_where_none_is_asked_for():
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input()
        layer(x.requires_grad_()).sum().backward()
        expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
        layer.zero_grad()
        with memory_checks():
            layer(x.detach()).sum().backward()  # an expanded dy, too
        for name, p in layer.named_parameters():
            torch.testing.assert_close(p.grad, expected[name])


@case
def not_a_number_stays_one():
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input()
        with torch.no_grad(), memory_checks(nan_loads=False):
            layer.dilation_proj.bias.fill_(torch.nan)
            assert layer(x)[:, 1:].isnan().all()
        layer, x = layer_and_input(dilation=1, activation="relu")
        x[0, 2, 3] = torch.nan
        with torch.no_grad(), memory_checks(nan_loads=False):
            assert layer(x)[:2, 2].isnan().all()


@case
def weights_may_have_any_layout():
    """Transposed, expanded, sliced, lazily negated, or views of a flat buffer: the same bits as contiguous ones."""
    layouts = (
        lambda w: w.transpose(0, -1).contiguous().transpose(0, -1),
        lambda w: torch.cat([w[:1], w])[1:],
        lambda w: torch.stack([w, w], -1)[..., 0],
        lambda w: w[:1].expand_as(w),
        torch._neg_view,
    )
    for design, change in itertools.product(DESIGNS, layouts):
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input()
        strided = copy.deepcopy(layer)
        for p, q in zip(layer.parameters(), strided.parameters(), strict=True):
            q.data = change(p.detach())
            p.data = q.detach().clone(memory_format=torch.contiguous_format)
        dy = torch.randn_like(x)
        with memory_checks():
            actual = forward_backward(strided, x, dy)
        expected = forward_backward(layer, x, dy)
        assert all(torch.equal(value, expected[name]) for name, value in actual.items())


@case
def what_is_kept_may_come_back_otherwise():
    """Hooks on saved tensors may give back other strides, another start, what is lazily negated, another dtype."""
    changes = (
        lambda kept: torch.stack([kept, kept], -1)[..., 0],
        lambda kept: torch.cat([kept.flatten()[:1], kept.flatten()])[1:].view(kept.shape),
        lambda kept: torch._neg_view(-kept),
        torch.Tensor.float,
    )
    for design, dtype in itertools.product(DESIGNS, (torch.bfloat16, torch.float32)):
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer = FusedFEAdapter(8, 6, num_frames=1, dilation=1, backend="triton", dtype=dtype)
        nn.init.normal_(layer.temporal_conv.weight)
        x, dy = torch.randn(2, 1, 3, 8, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):  # with a copy of the weights
            expected = torch.autograd.grad(layer(x), list(layer.parameters()), dy)
            for change in changes:
                with torch.autograd.graph.saved_tensors_hooks(change, lambda kept: kept):
                    y = layer(x)
                actual = torch.autograd.grad(y, list(layer.parameters()), dy)
                assert all(map(torch.equal, actual, expected)), (design, dtype)


@case
def an_input_computed_again_is_the_input():
    """Also where what was added to it is a hundred times as large, and x is wider than the products."""
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input(dilation=1)
        with torch.no_grad():
            layer.up_proj.weight.mul_(100)
        gradients = []
        for layer.recompute in (None, "input"):
            with torch.autocast("cpu", torch.bfloat16):
                gradients.append(forward_backward(layer, x, torch.ones_like(x))["down_proj.weight"])
        kept, again = gradients
        assert (again - kept).norm() <= 2**-8 * kept.norm(), design  # some elements of x are rounded to the other side


@case
def a_dilation_beyond_all_frames_is_one_of_as_many_frames():
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input(dilation=2, kernel_size=5)
        expected = layer(x)
        layer.dilation = 2**31 - 1
        assert torch.equal(layer(x), expected)


@case
def kernels_run_on_the_device_of_their_tensors():
    """Which need not be the current one, where Triton launches."""
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input()
        with (
            mock.patch.object(torch.cuda, "device_of", wraps=torch.cuda.device_of) as guard,
            FlopCounterMode(display=False),
        ):
            layer(x).sum().backward()  # by the operators, which a dispatch mode sees
        assert [call.args[0].device for call in guard.call_args_list] == [x.device] * 2


@case
def either_switch_of_pytorch_decides_on_tf32():
    from fe_adapter.kernels import plans

    matmul = torch.backends.cuda.matmul
    assert plans.precision() == "ieee"
    matmul.allow_tf32 = True
    assert plans.precision() == "tf32"
    matmul.allow_tf32 = False
    assert plans.precision() == "ieee"
    matmul.fp32_precision = "tf32"  # from here on PyTorch refuses to read the older switch
    try:
        assert plans.precision() == "tf32"
        layer, x = layer_and_input()
        layer(x)
    finally:
        matmul.fp32_precision = "ieee"


@case
def a_fresh_layer_is_the_identity():
    for design in DESIGNS:
        os.environ["FE_ADAPTER_DESIGN"] = design
        for dtype in DTYPES.values():
            layer = FusedFEAdapter(8, 6, num_frames=2, backend="triton", dtype=dtype)
            x = torch.randn(4, 5, 8, dtype=dtype)
            assert torch.equal(layer(x), x)


@case
def an_empty_batch_gives_an_empty_one():
    layer, x = layer_and_input()
    y = layer(x[:0].requires_grad_())
    assert y.shape == (0, 5, 8)
    y.sum().backward()
    assert not layer.up_proj.weight.grad.any()


@case
def memory_is_estimated_without_the_interpreter():
    """It would want the values of tensors that have none."""

    class ShortGELU(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gelu2bit(x)

    for dilation, recompute in (("dynamic", None), (1, "hidden"), (2, "input")):
        layer, x = layer_and_input(dilation=dilation, recompute=recompute)
        kept, short = (estimate_memory(nn.Sequential(layer, gelu), *x.shape) for gelu in (nn.Identity(), ShortGELU()))
        assert short.saved - kept.saved == x.numel() // 4


@case
def opcheck_and_compile():
    for design in DESIGNS:
        operators(torch.device("cpu"), design, SHAPES["small"])
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input(dilation=1)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), layer(x))


@contextlib.contextmanager
def last_clip_only(num_clips: int) -> Iterator[None]:
    """Within the block a launch runs the programs of its last clip alone, and nothing else touches what it is given."""
    from triton.runtime import interpreter

    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    call, set_index, set_size = executor.__call__, builder.set_grid_idx, builder.set_grid_dim

    def run(self, *arguments, **options):
        (programs,) = self.grid
        self.grid = (programs // num_clips,)
        first = programs - self.grid[0]
        with (
            mock.patch.object(builder, "set_grid_idx", lambda x, y, z: set_index(first + x, y, z)),
            mock.patch.object(builder, "set_grid_dim", lambda x, y, z: set_size(programs, y, z)),
        ):
            call(self, *arguments, **options)

    with (
        mock.patch.object(executor, "__call__", run),
        mock.patch.object(executor, "_restore_args_dev"),
    ):
        yield


@case
def tensors_over_two_to_the_31_elements():
    """The last clip of 4 GiB tensors, the rest of which is address space only, gives the bits that it gives alone."""
    from fe_adapter.kernels import conv
    from fe_adapter.kernels.fused import Launches

    T, N, P, D, R = 4, 4, 1, 64, 80
    B = 2**31 // (T * N * R) + 2

    def results(B: int, design: str, weights: Weights, spec: AdapterSpec) -> list[torch.Tensor]:
        x, h, dphi = (torch.empty(B, T, *size, dtype=torch.float16) for size in ((P + N, D), (N, R), (N, R)))
        generator = torch.Generator().manual_seed(0)
        for z in (x, h, dphi):
            z[-1] = torch.randn(z[-1].shape, generator=generator)
        if design == "gemm":
            convolution = conv.KernelConvolution(x.shape, weights, spec)
            rows, again = convolution.rows(h), convolution.rows(h)
            convolution.activate(h, weights, rows)
            dc, state = convolution.backward_activation(dphi, h, weights, again)
            convolution.backward_hidden(dc, h, weights, rows, state)
            return [rows.matrix.view(B, -1, R + PAD), again.matrix.view(B, -1, R + PAD), dc]
        launches = Launches(x, weights, spec, design)
        y, own_h, _, _ = launches.forward(x, weights, False)
        dx, rows, dh_columns, _, _ = launches.backward(x, None, h, weights, None, True)
        rows, dh = (z.view(B, -1, z.shape[1]) for z in (rows, dh_columns.t()))
        return [y, own_h, dx, rows, dh]

    def sums(*tensors) -> None:
        """In the place of the second stage, which would read all of the partial sums."""

    for design, dynamic in itertools.product(("gemm", "fused", "resident"), (False, True)):
        shapes = [(R, D), (R,), (R, 1, 3, 1, 1), (R,), (D, R), (D,)] + [(3, R), (1,)] * dynamic
        weights = Weights(*(torch.randn(shape).half() / 8 for shape in shapes))
        spec = AdapterSpec((1, 1, 1), None, "silu", P, (N, 1), torch.float16)
        with mock.patch.object(conv, "add_sums", sums):
            alone = results(1, design, weights, spec)
            with last_clip_only(B):
                large = results(B, design, weights, spec)
        assert all(z.numel() > 2**31 for z in large)
        assert all(torch.equal(z[-1], one[-1]) for z, one in zip(large, alone, strict=True))


@case
def a_second_derivative_is_refused():
    layer, x = layer_and_input()
    (gradient,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


@case
def auto_takes_triton_and_says_nothing():
    os.environ.pop("FE_ADAPTER_DESIGN", None)
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("fe_adapter").addHandler(handler)
    x = torch.randn(4, 5, 8)
    layer = FusedFEAdapter(8, 6, num_frames=2)
    nn.init.normal_(layer.temporal_conv.weight)
    from fe_adapter.kernels import plans

    with memory_checks():
        layer(x)
    assert plans.platform() == "interpreter"
    assert not records


@case
def bad_designs_are_refused():
    refusals = {
        "best": ({}, "FE_ADAPTER_DESIGN='best' is not one of 'fused', 'gemm', 'resident', 'tail'"),
        **{
            design: ({"kernel_size": (3, 3, 3)}, f"FE_ADAPTER_DESIGN={design} cannot run here: a spatial kernel")
            for design in DESIGNS
            if design != "gemm"
        },
    }
    for design, (options, message) in refusals.items():
        os.environ["FE_ADAPTER_DESIGN"] = design
        layer, x = layer_and_input(**options)
        with pytest.raises((RuntimeError, ValueError), match=message):
            layer(x)
    with pytest.raises(RuntimeError, match="17 frames are more than the 16 rows of a program"):
        FusedFEAdapter(4, 2, num_frames=17, backend="triton")(torch.zeros(17, 2, 4))


@case
def gradients_have_the_dtype_of_their_weights():
    """Also where products are computed in a wider one."""
    x = torch.randn(1, 4, 5, 16)
    weights = [p.detach() for p in FusedFEAdapter(16, 16, num_frames=4, dilation=1, dtype=torch.bfloat16).parameters()]
    options = 4, (1, 1, 1), None, False, "identity", 1, (4, 1), torch.float32
    for os.environ["FE_ADAPTER_DESIGN"] in DESIGNS:
        y, h, *_ = operator.forward_op(x, weights, *options, None, True, "triton")
        gradients = operator.backward_op(torch.randn_like(y), x, None, h, None, weights, *options, "triton", True)
        assert [g.dtype for g in gradients] == [torch.float32, *[torch.bfloat16] * 6]


@case
def the_checks_see_planted_faults():
    """A kernel whose mask is missing, and two programs that write one element."""
    from tests.kernels import faulty_kernels

    for launch, message in ((faulty_kernels.overrun, "out of bounds"), (faulty_kernels.collide, "race")):
        with pytest.raises(Exception) as caught, memory_checks():  # noqa: PT011 (the interpreter wraps it)
            launch()
        chain = [str(error) for error in (caught.value, caught.value.__cause__, caught.value.__context__)]
        assert any(message in text for text in chain), chain


def main(cases: dict[str, Callable[[], None]]) -> None:
    outcomes = {}
    for name, run in cases.items():
        torch.manual_seed(0)
        try:
            with run_time_ranges():
                run()
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = traceback.format_exc()[-1500:]
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(SLOW_CASES if sys.argv[1:] == ["slow"] else CASES)
