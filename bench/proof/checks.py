"""What must hold on a device before anything is timed on it: checks by name, each independent of the others."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure.case import SkippedError
from bench.measure.harness import Graphed
from bench.proof.agreement import (
    RECOMPUTED_SLACK,
    assert_within,
    expect,
    forward_backward,
    pair,
    settle_dilation,
    share_weights,
)
from fe_adapter import FEAdapter, FusedFEAdapter
from fe_adapter.backbones.backbone import plain_name
from fe_adapter.kernels.plans import refusals
from fe_adapter.kernels.spec import DESIGNS
from fe_adapter.kernels.support import unsupported_reasons

Shape = tuple[int, int, int, int, int, int]  # B, T, N, P, D, R
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
SHAPES: dict[str, Shape] = {
    "R=64": (2, 8, 196, 1, 768, 64),  # with the two plain forms the kernels that the suite times first
    "R=128": (2, 8, 196, 1, 768, 128),
    "R=384": (2, 8, 196, 1, 768, 384),
    "R=512": (1, 12, 50, 1, 768, 512),
    "no prefix": (1, 16, 49, 0, 384, 192),
    "masks": (2, 5, 37, 5, 208, 96),  # D and N are no multiples of a tile
    "not aligned": (3, 1, 7, 1, 33, 17),
}
TINY: Shape = (1, 4, 9, 1, 32, 48)
PLAIN: dict[str, dict[str, Any]] = {"static": {"dilation": 1}, "dynamic": {"dilation": "dynamic"}}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # each at one shape
    "static": ("R=384", PLAIN["static"]),
    "dynamic": ("masks", PLAIN["dynamic"]),
    "dilated": ("no prefix", {"dilation": 3, "kernel_size": 5, "activation": "silu"}),
    "bounded": ("R=128", {"dilation": "dynamic", "max_dilation": 1.39, "activation": "gelu", "recompute": "hidden"}),
    "causal": ("R=128", {"dilation": 2, "causal": True}),
    "causal, dynamic": ("R=384", {"dilation": "dynamic", "max_dilation": 2.5, "causal": True, "activation": "silu"}),
    "input": ("R=64", {"dilation": 1, "activation": "relu", "recompute": "input"}),
    "fp32 stream": ("R=384", {"dilation": 2, "stream": torch.float32}),  # under autocast
    "dynamic, fp32 stream": ("masks", {"dilation": "dynamic", "stream": torch.float32}),
    "spatial": ("R=64", {"dilation": "dynamic", "kernel_size": (3, 3, 3), "activation": "gelu"}),
    "spatial, dilated": ("R=64", {"dilation": (2, 3, 2), "kernel_size": (3, 3, 3), "activation": "silu"}),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # of x and dy (B*T, L, D)
    "sliced": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], -1)[..., : x.shape[-1]],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


def get_checks(device: torch.device, quick: bool = False) -> dict[str, Callable[[], None]]:
    """Every check that makes sense on ``device``, the most telling first; ``quick``: tiny, and in bf16 alone.

    A check raises an AssertionError where something is wrong, `SkippedError` where this machine cannot show it.
    """
    shapes = {"tiny": TINY} if quick else SHAPES
    dtypes = {"bf16": torch.bfloat16} if quick else DTYPES
    found: dict[str, Callable[[], None]] = {}

    def add(design: str, precision: str, form: str, shape: str, **options: Any) -> None:
        dtype, sizes = DTYPES[precision], TINY if quick else SHAPES[shape]
        if serves(device, design, dtype, sizes, options):
            tf32 = precision == "tf32"
            found.setdefault(
                f"{design}: {form}, {precision}, {shape}",
                partial(check, device, design, dtype, sizes, tf32=tf32, **options),
            )

    designs = ("eager", *DESIGNS)
    for design in DESIGNS:  # the newest paths first: graphs of the lean path, x kept in the dtype of the products
        if serves(device, design, torch.bfloat16, TINY if quick else SHAPES["R=64"], {}):
            size = TINY if quick else SHAPES["R=64"]
            for function in (lean_path, captured_step, graph_replays):
                found[f"{design}: {_title(function)}"] = partial(function, device, design, size)
        for form in ("fp32 stream", "dynamic, fp32 stream"):
            at, options = FORMS[form]
            add(design, "bf16", form, "tiny" if quick else at, **options)
    for shape, form, design in itertools.product(shapes, PLAIN, designs):
        add(design, next(iter(dtypes)), form, shape, **PLAIN[form])
    for form, precision, design in itertools.product(FORMS, dtypes, designs):
        at, options = FORMS[form]
        if "stream" in options and DTYPES[precision] == torch.float32:
            continue
        add(design, precision, form, "tiny" if quick else at, **options)
    size = TINY if quick else SHAPES["R=64"]
    for design in designs:
        if not serves(device, design, torch.bfloat16, size, {}):
            continue
        for layout, change in LAYOUTS.items():
            copies = 1 + size[2] if layout == "expanded" else 1
            found[f"{design}: {layout} x and dy"] = partial(
                check, device, design, torch.bfloat16, size, dilation=1, change=change, copies=copies
            )
        for function in (no_gradient_of_x, weights_not_contiguous, lean_path, captured_step, graph_replays, operators):
            found[f"{design}: {_title(function)}"] = partial(function, device, design, size)
    numel = 2**12 if quick else 2**31
    once = (partial(compiled_whole, device, size), partial(steps_of_gelu2bit, device), partial(second_gpu, size))
    return found | {_title(each.func): each for each in (*once, partial(over_2_31_elements, device, size, numel))}


def _title(function: Callable) -> str:
    return function.__name__.replace("_", " ")


def serves(device: torch.device, design: str, dtype: torch.dtype, shape: Shape, options: dict[str, Any]) -> bool:
    """Whether a design can serve a shape and a form on this device."""
    _, T, N, P, D, R = shape
    kernel = options.get("kernel_size", 3)
    size = kernel if isinstance(kernel, tuple) else (kernel, 1, 1)
    if size[1:] != (1, 1) and math.isqrt(N) ** 2 != N:
        return False  # no square of patches
    if design == "eager":
        return True
    x = torch.empty(1, T, P + N, D, device=device, dtype=options.get("stream", dtype))
    return not unsupported_reasons(device, dtype) and not refusals(design, x, dtype, R, torch.empty(R, 1, *size))


@contextlib.contextmanager
def chosen(design: str, tf32: bool = False) -> Iterator[None]:
    """Within the block the Triton backend runs one design, and fp32 products as ``tf32`` says."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with mock.patch.dict(os.environ, {} if design == "eager" else {"FE_ADAPTER_DESIGN": design}):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def layers(
    device: torch.device, design: str, dtype: torch.dtype, shape: Shape, **options: Any
) -> tuple[FEAdapter, FusedFEAdapter]:
    """The reference in float64 and the fused layer in ``dtype``, with the same weights, rounded to ``dtype``."""
    _, T, _, P, D, R = shape
    options |= {"num_frames": T, "num_prefix_tokens": P, "device": device}
    options["backend"] = "eager" if design == "eager" else "triton"
    exact, _ = pair(D, R, dtype=torch.float64, **options)
    settle_dilation(exact)
    layer = FusedFEAdapter(D, R, dtype=dtype, **options)
    share_weights(exact, layer)
    return exact, layer


def tokens(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[Tensor, Tensor]:
    """Random ``x`` and ``dy`` (B*T, L, D)."""
    B, T, N, P, D, _ = shape
    x, dy = torch.randn(2, B * T, P + N, D, device=device).to(dtype)
    return x, dy


def assert_right(
    actual: dict[str, Tensor],
    exact: FEAdapter,
    x: Tensor,
    dy: Tensor,
    dtype: torch.dtype,
    tf32: bool = False,
    copies: int = 1,
) -> None:
    """What ``actual`` holds of output and gradients is what ``exact`` gives in float64, within rounding."""
    with chosen("eager", tf32):
        expected = expect(exact, x, dy, dtype)
    slack = RECOMPUTED_SLACK if exact.recompute == "input" else 1
    assert_within(actual, {name: expected[name] for name in actual}, slack, copies)


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    different = [name for name, value in expected.items() if not torch.equal(actual[name], value)]
    assert not different, f"{what}: {', '.join(different)} differ"


def check(
    device: torch.device,
    design: str,
    dtype: torch.dtype,
    shape: Shape,
    *,
    tf32: bool = False,
    stream: torch.dtype | None = None,
    change: Callable[[Tensor], Tensor] = lambda x: x,
    copies: int = 1,
    **options: Any,
) -> None:
    """Output and gradients of a layer against float64; prefix tokens pass; two runs give the same bits."""
    P, stored = shape[3], stream or dtype
    exact, layer = layers(device, design, stored, shape, **options)
    x, dy = map(change, tokens(device, stored, shape))
    with chosen(design, tf32), torch.autocast(device.type, dtype, enabled=stream is not None):
        actual, again = forward_backward(layer, x, dy), forward_backward(layer, x, dy)
    assert_same_bits(again, actual, "two runs")
    for name, source in (("y", x), ("x", dy)):
        assert torch.equal(actual[name][:, :P], source[:, :P]), f"prefix tokens of {name} changed"
    assert_right(actual, exact, x, dy, dtype, tf32, copies)


def no_gradient_of_x(device: torch.device, design: str, shape: Shape) -> None:
    """The gradients of the weights where ``x`` asks for none, as in the first block of a frozen net."""
    exact, layer = layers(device, design, torch.bfloat16, shape)
    x, dy = tokens(device, torch.bfloat16, shape)
    with chosen(design):
        layer(x).backward(dy)
    actual = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert len(actual) == len(list(layer.parameters())), "a parameter has no gradient"
    assert_right(actual, exact, x, dy, torch.bfloat16)


def weights_not_contiguous(device: torch.device, design: str, shape: Shape) -> None:
    """Every parameter one column of a tensor of two, the other NaN."""
    exact, layer = layers(device, design, torch.bfloat16, shape)
    for p in layer.parameters():
        p.data = torch.stack([p.data, torch.full_like(p, torch.nan)], -1)[..., 0]
    x, dy = tokens(device, torch.bfloat16, shape)
    with chosen(design):
        actual = forward_backward(layer, x, dy)
    assert_right(actual, exact, x, dy, torch.bfloat16)


class _Watched(TorchDispatchMode):
    """Sees every operator, so that layers call theirs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def lean_path(device: torch.device, design: str, shape: Shape) -> None:
    """Without the operator a layer gives its bits: at first, with bound launches, at other addresses and alignments."""
    _, layer = layers(device, design, torch.bfloat16, shape)

    def agree(size: Shape, what: str, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        x, dy = tokens(device, torch.bfloat16, size)
        x = change(x)
        actual = forward_backward(layer, x, dy)
        with _Watched():
            expected = forward_backward(layer, x, dy)
        assert_same_bits(actual, expected, f"{what}, with and without the operator")

    with chosen(design):
        for what in ("the first call", "the second call", "the third call"):
            agree(shape, what)
        agree(shape, "x one element off", lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape))
        for p in layer.parameters():
            p.data = torch.cat([p.data.flatten(), p.data.flatten()[:8]])[: p.numel()].view(p.shape)
        agree(shape, "weights elsewhere")
        for p in layer.parameters():
            p.data = torch.cat([p.data.flatten()[:1], p.data.flatten()])[1:].view(p.shape)
        agree(shape, "weights one element off")
        agree((shape[0] + 1, *shape[1:]), "one clip more")
        agree(shape, "as at first")


def captured_step(device: torch.device, design: str, shape: Shape) -> None:
    """A step of `fit` as a graph, in fp32 under autocast, gives the bits of the same step without one."""
    if device.type != "cuda":
        raise SkippedError("CUDA graphs need a GPU")
    from fe_adapter.train.step import Step

    _, layer = layers(device, design, torch.float32, shape)
    net = torch.nn.Sequential(layer, torch.nn.LayerNorm(shape[4], device=device)).train()
    parameters = list(net.parameters())

    def function(x: Tensor, target: Tensor, weight: Tensor | float) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = torch.nn.functional.cross_entropy(net(x).mean((0, 1))[None].float(), target)
        (loss * weight).backward()
        return loss.detach()

    found: dict[str, list[Tensor]] = {}
    batches = [(tokens(device, torch.float32, shape)[0], torch.tensor([i], device=device)) for i in range(3)]
    with chosen(design):
        for capture in ("off", "on"):
            net.zero_grad(set_to_none=True)
            step = Step(function, parameters, [], capture, None)
            found[capture] = [step(*batch, 0.5) for batch in batches]
            found[capture] += [p.grad.clone() for p in parameters if p.grad is not None]
    assert len(found["on"]) == len(batches) + len(parameters), "a parameter has no gradient"
    names = [*(f"loss {i}" for i in range(len(batches))), *(name for name, _ in net.named_parameters())]
    expected, actual = (dict(zip(names, found[capture], strict=True)) for capture in ("off", "on"))
    assert_same_bits(actual, expected, "captured and eager")


def graph_replays(device: torch.device, design: str, shape: Shape) -> None:
    """Forward and backward in one CUDA graph: on new data it replays the bits of the same calls without one."""
    if device.type != "cuda":
        raise SkippedError("CUDA graphs need a GPU")
    _, layer = layers(device, design, torch.bfloat16, shape)
    x, dy = tokens(device, torch.bfloat16, shape)
    replayed: dict[str, Tensor] = {}
    with chosen(design):
        graphed = Graphed(lambda: replayed.update(forward_backward(layer, x, dy)))
        for _ in range(2):
            for buffer, fresh in zip((x, dy), tokens(device, torch.bfloat16, shape), strict=True):
                buffer.copy_(fresh)
            graphed(None)
            assert_same_bits(replayed, forward_backward(layer, x, dy), "replayed and eager")


def operators(device: torch.device, design: str, shape: Shape) -> None:
    """The registered operators are what PyTorch was told that they are."""
    _, T, N, P, _, _ = shape
    _, layer = layers(device, design, torch.bfloat16, shape, dilation=1)
    x, dy = (z.unflatten(0, (-1, T)) for z in tokens(device, torch.bfloat16, shape))
    weights = [p.detach() for p in layer.parameters()]
    spec = (T, (1, 1, 1), None, False, "identity", P, (N, 1), torch.bfloat16)
    leaves = [p.clone().requires_grad_() for p in weights]
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    op = torch.ops.fe_adapter
    with chosen(design):
        forward = (x.clone().requires_grad_(), leaves, *spec, None, True, layer.backend)
        torch.library.opcheck(op.adapter_forward.default, forward, test_utils=utils)
        _, h, *_ = op.adapter_forward(x, weights, *spec, None, True, layer.backend)
        backward = (dy, x, None, h, None, weights, *spec, layer.backend, True)
        torch.library.opcheck(op.adapter_backward.default, backward, test_utils=utils)


def compiled_whole(device: torch.device, shape: Shape) -> None:
    """`torch.compile` takes the layer without a graph break, and it gives the same bits."""
    _, layer = layers(device, "eager", torch.bfloat16, shape)
    layer.backend = "auto"
    x, dy = tokens(device, torch.bfloat16, shape)
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # a CPU would need a C++ compiler
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    actual = forward_backward(cast(torch.nn.Module, compiled), x, dy)
    actual = {plain_name(name): value for name, value in actual.items()}
    assert_same_bits(actual, forward_backward(layer, x, dy), "compiled and eager")


def steps_of_gelu2bit(device: torch.device, shapes: tuple[tuple[int, ...], ...] = ((1,), (4099,), (2**20,))) -> None:
    """Both kernels of memory policy gelu2bit: every interval, and a tail that fills no byte."""
    from fe_adapter.ops.gelu2bit import STEPS, gelu2bit

    positions, slopes = STEPS["erf"]
    for dtype, shape in itertools.product((torch.bfloat16, torch.float16, torch.float32), shapes):
        x = (3 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
        dy = torch.randn(shape, device=device).to(dtype)
        (dx,) = torch.autograd.grad(gelu2bit(x), x, dy)
        code = sum((x.detach() > position).long() for position in positions)
        expected = (dy.float() * torch.tensor(slopes, device=device)[code]).to(dtype)
        info = torch.finfo(dtype)
        smallest = info.eps * info.tiny if dtype == torch.float16 else 0  # only there products may be subnormal
        torch.testing.assert_close(dx, expected, rtol=info.eps, atol=smallest)  # one unit in the last place


def second_gpu(shape: Shape) -> None:
    """Every design on a GPU that is not the current one."""
    if torch.cuda.device_count() < 2:
        raise SkippedError("there is no second GPU")
    device = torch.device("cuda", 1)
    for design in DESIGNS:
        if serves(device, design, torch.bfloat16, shape, {}):
            check(device, design, torch.bfloat16, shape)


def over_2_31_elements(device: torch.device, shape: Shape, numel: int) -> None:
    """Tensors of more than 2³¹ elements: what the first and the last clip give, between clips that add nothing."""
    _, T, N, P, D, _ = shape
    num_clips = numel // (T * (P + N) * D) + 2
    needed = 6 * 2 * numel  # bytes: x, y, their gradients, and half as much again
    if device.type == "cuda" and (free := torch.cuda.mem_get_info(device)[0]) < needed:
        raise SkippedError(f"it takes {needed / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free")
    x, dy = torch.zeros(2, num_clips * T, P + N, D, device=device, dtype=torch.bfloat16)

    def ends(z: Tensor) -> Tensor:
        return torch.cat([z[:T], z[-T:]])

    for buffer, fresh in zip((x, dy), tokens(device, torch.bfloat16, (2, *shape[1:])), strict=True):
        buffer[:T], buffer[-T:] = fresh[:T], fresh[-T:]
    x.requires_grad_()
    for design in DESIGNS:
        if not serves(device, design, torch.bfloat16, shape, {}):
            continue
        exact, layer = layers(device, design, torch.bfloat16, shape, dilation=1)
        x.grad = None
        with chosen(design):
            y = layer(x)
            y.backward(dy)
        assert x.grad is not None
        actual = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        actual |= {"y": ends(y.detach()), "x": ends(x.grad)}
        del y
        try:
            assert_right(actual, exact, ends(x.detach()), ends(dy), torch.bfloat16)
        except AssertionError as error:
            raise AssertionError(f"{design}: {error}") from None
