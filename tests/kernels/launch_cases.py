"""What `tests.kernels.test_launch` runs where PyTorch and Triton see a CUDA that is not there: nothing is computed, but
every launch is real up to the driver, and what it is given can be looked at."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from fe_adapter import FusedFEAdapter
from fe_adapter.kernels import fused, scratch
from fe_adapter.kernels.launch import Launch
from fe_adapter.ops import direct
from fe_adapter.ops import fused as ops_fused
from tests.imitated import case, main

B, T, N, D, R = 2, 4, 15, 64, 32


def make(dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[FusedFEAdapter, Tensor]:
    """A layer whose launches are bound, and an input."""
    options = {"dilation": "dynamic", **options}
    layer = FusedFEAdapter(D, R, num_frames=T, device="cuda", dtype=dtype, **options)
    x = torch.zeros(B * T, N + 1, D, device="cuda", dtype=dtype)
    for _ in range(3):
        step(layer, x)
    return layer, x


def step(layer: FusedFEAdapter, x: Tensor) -> None:
    layer(x.detach().requires_grad_()).backward(torch.zeros(x.shape, device="cuda", dtype=x.dtype))


@contextlib.contextmanager
def recorded() -> Iterator[tuple[list[tuple], list[Any]]]:
    """The addresses that bound launches are given, and what goes through Triton's JIT instead."""
    bound: list[tuple] = []
    others: list[Any] = []
    run, jit = Launch.run, triton.JITFunction.run

    def record_run(self: Launch, *pointers: int | None) -> None:
        bound.append(pointers)
        run(self, *pointers)

    def record_jit(self: Any, *arguments: Any, **options: Any) -> Any:
        others.append(arguments)
        return jit(self, *arguments, **options)

    with mock.patch.object(Launch, "run", record_run), mock.patch.object(triton.JITFunction, "run", record_jit):
        yield bound, others


def addresses(layer: FusedFEAdapter) -> set[int]:
    return {p.data_ptr() for p in layer.parameters()}


@case
def once_bound_nothing_goes_through_the_jit() -> None:
    layer, x = make()
    with recorded() as (bound, others):
        step(layer, x)
    assert len(bound) == 3, bound  # forward, backward, the sums
    assert not others
    assert bound[0][0] == x.data_ptr()
    assert addresses(layer) <= set(bound[0])


@case
def weights_that_have_moved_are_read_where_they_are() -> None:
    layer, x = make()
    before = [p.data for p in layer.parameters()]  # held, or the allocator would give their memory out again
    old = {p.data_ptr() for p in before}
    for p in layer.parameters():
        p.data = p.data.clone()
    with recorded() as (bound, _):
        step(layer, x)
    assert addresses(layer) <= set(bound[0])
    assert not old & {pointer for pointers in bound for pointer in pointers}


@case
def one_of_many_inputs_is_read_where_it_is() -> None:
    layer, x = make()
    others = [torch.zeros_like(x) for _ in range(3)]
    for z in others:
        with recorded() as (bound, _):
            step(layer, z)
        assert bound[0][0] == z.data_ptr()


@case
def what_is_not_aligned_is_another_kind_of_call() -> None:
    layer, x = make()
    odd = torch.zeros(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view_as(x)
    assert odd.data_ptr() % 16
    for _ in range(3):  # which binds that kind's own launches
        step(layer, odd)
    with recorded() as (bound, others):
        step(layer, odd)
        step(layer, x)
    assert not others
    assert odd.data_ptr() not in bound[0]  # but a copy, as the kernels ask for aligned rows
    assert bound[0][0] % 16 == 0
    assert bound[3][0] == x.data_ptr()
    down = layer.down_proj.weight
    down.data = torch.zeros(down.numel() + 1, device="cuda", dtype=x.dtype)[1:].view_as(down)
    for _ in range(3):
        step(layer, x)
    with recorded() as (bound, _):
        step(layer, x)
    assert all(pointer is None or pointer % 16 == 0 for pointer in bound[0])


@case
def what_hooks_give_back_misaligned_is_copied() -> None:
    def moved(kept: Tensor) -> Tensor:
        return torch.zeros(kept.numel() + 1, device="cuda", dtype=kept.dtype)[1:].view(kept.shape)

    for dtype in (torch.bfloat16, torch.float32):
        layer, x = make(dtype)
        with (
            torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.float32),
            torch.autograd.graph.saved_tensors_hooks(moved, lambda kept: kept),
        ):
            for _ in range(3):
                step(layer, x)
            with recorded() as (bound, others):
                step(layer, x)
        assert not others
        assert all(pointer is None or pointer % 16 == 0 for pointers in bound for pointer in pointers)


@case
def what_has_left_the_gpu_before_backward_is_read_on_it() -> None:
    layer, x = make()
    layer.zero_grad()
    y = layer(x.requires_grad_())
    layer.cpu()
    away = addresses(layer)
    with recorded() as (bound, others):
        y.backward(torch.zeros_like(y))
    given = {t.data_ptr() for call in others for t in call if isinstance(t, Tensor)}
    given |= {pointer for pointers in bound for pointer in pointers}
    assert given
    assert not away & given


@case
def other_strides_are_another_kind_of_call() -> None:
    layer, x = make()
    apart = torch.zeros(B * T, N + 1, 2 * D, device="cuda", dtype=x.dtype)[..., :D]
    with recorded() as (bound, others):
        step(layer, apart)
        step(layer, x)
    assert others  # compiled or bound anew, not run with the strides of x
    assert bound[-3][0] == x.data_ptr()


@case
def a_square_weight_that_is_transposed_in_place_is_noticed() -> None:
    layer = FusedFEAdapter(D, D, num_frames=T, dilation=1, device="cuda", dtype=torch.bfloat16)
    x = torch.zeros(B * T, N + 1, D, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        step(layer, x)
    weight = layer.down_proj.weight
    weight.data = weight.data.t()
    address = weight.data_ptr()
    with recorded() as (bound, others):
        step(layer, x)
    given = {t.data_ptr() for call in others for t in call if isinstance(t, Tensor)} | set(bound[0] if bound else ())
    assert address not in given  # the kernels want it contiguous: a copy


@case
def another_dtype_is_another_kind_of_call() -> None:
    layer, x = make()
    layer.to(torch.float16)
    with recorded() as (_, others):
        step(layer, x.half())
    assert others
    layer.to(torch.float32)
    x = x.float()
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            step(layer, x)
    with torch.autocast("cuda", torch.bfloat16), recorded() as (bound, others):
        step(layer, x)
    assert not others
    assert len(bound) == 4  # the weights are cast, once for both directions
    with recorded() as (_, others), torch.autocast("cuda", torch.float16):
        step(layer, x)
    assert others


@case
def the_environment_is_heard_at_any_time() -> None:
    layer, x = make()
    with mock.patch.dict(os.environ, FE_ADAPTER_BACKEND="eager"), recorded() as (bound, others):
        step(layer, x)
    assert not bound
    assert not others
    with mock.patch.dict(os.environ, FE_ADAPTER_DESIGN="gemm"), recorded() as (bound, _):
        for _ in range(3):
            step(layer, x)
    assert bound


@case
def hooks_of_triton_are_told_of_launches() -> None:
    layer, x = make()
    told: list[Any] = []
    triton.knobs.runtime.launch_enter_hook.add(told.append)
    try:
        step(layer, x)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(told.append)
    assert len(told) == 3
    with recorded() as (bound, others):
        step(layer, x)
    assert len(bound) == 3
    assert not others


@case
def where_triton_launches_otherwise_its_own_way_is_taken() -> None:
    from triton.backends.nvidia.driver import CudaLauncher

    original = CudaLauncher.__call__

    def otherwise(self: Any, *arguments: Any) -> None:
        for _ in range(2):
            original(self, *arguments)

    with mock.patch.object(CudaLauncher, "__call__", otherwise):
        layer, x = make(activation="silu")  # compiled here for the first time
        with recorded() as (bound, others):
            step(layer, x)
    assert not bound
    assert len(others) == 3


@case
def what_is_made_is_as_pytorch_makes_it() -> None:
    """By the functions of Inductor, which this PyTorch has, and without them."""

    def made(layer: FusedFEAdapter, x: Tensor) -> list[tuple]:
        layer.zero_grad()
        x = x.detach().requires_grad_()
        y = layer(x)
        y.backward(torch.zeros_like(y))
        parameters = list(layer.parameters())
        found = [y, x.grad, *(p.grad for p in parameters)]
        assert len({z.untyped_storage().data_ptr() for z in found}) == len(found)
        assert all(z.grad.stride() == z.stride() for z in (x, *parameters))
        return [(z.shape, z.stride(), z.dtype, z.device, z.storage_offset(), z.is_inference()) for z in found]

    assert None not in (scratch._empty_on_gpu, getattr(torch._C._dynamo.guards, "_reinterpret_tensor", None))
    for dtype, shape in ((torch.bfloat16, (B * T, N + 1, D)), (torch.float32, (B, T, N + 1, D))):
        layer, x = make(dtype)
        x = x.view(shape)
        found = made(layer, x)
        conv = layer.temporal_conv.weight
        conv.data = conv.data.to(memory_format=torch.channels_last_3d)  # other strides, and still contiguous
        assert conv.is_contiguous()
        assert made(layer, x) != found
        found = made(layer, x)
        with (
            mock.patch.object(scratch, "_empty_on_gpu", None),
            mock.patch.object(fused, "view_of_whole", torch.as_strided),
        ):
            direct._kept.clear()
            ops_fused._kept.clear()
            assert made(layer, x) == found
        direct._kept.clear()
        ops_fused._kept.clear()
        with torch.inference_mode():
            assert layer(x.clone()).is_inference()


@case
def a_bounded_number_of_kinds_is_kept() -> None:
    from fe_adapter.kernels import spec

    layer = FusedFEAdapter(16, 16, num_frames=1, dilation=1)
    with mock.patch.object(spec, "MOST_KINDS", 4):
        direct._kept.clear()
        for n in range(2, 10):
            layer(torch.zeros(1, n, 16))
        assert len(direct._kept) == 4


@case
def launches_are_bound_by_one_thread_at_a_time() -> None:
    """What is put into Triton's launcher meanwhile would swallow the launches of whoever takes it for Triton's own."""

    class Kernel:
        arg_names: tuple[str, ...] = ()

        def __init__(self) -> None:
            self.compiled = SimpleNamespace(_run=Launcher())

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return self.launch

        def launch(self, *tensors: Tensor) -> None:
            if not threads:
                threads.append(threading.Thread(target=second, args=(self.compiled, tensors)))
                threads[0].start()
                threads[0].join(0.2)
                waits.append(threads[0].is_alive())
            self.compiled._run(1, 1, 1, 0, "function", None, None, None, None, *tensors)

    class Launcher:
        global_scratch_size = profile_scratch_size = 0

        def __init__(self) -> None:
            self.launch = launched

        def __call__(self, x: int, y: int, z: int, stream: int, function: str, *others: Any) -> None:
            self.launch(x, y, z, stream, function, others[:4], others[4:])

    def launched(*arguments: Any) -> None:
        pass

    def second(compiled: Any, tensors: tuple[Tensor, ...]) -> None:
        launches[1]._bind(compiled, tensors)

    threads: list[threading.Thread] = []
    waits: list[bool] = []
    kernel = Kernel()
    launches = [Launch(kernel, (1, 1, 1), (), {}) for _ in range(2)]
    launches[0]._bind(kernel.compiled, (torch.zeros(1, device="cuda"),))
    threads[0].join()
    assert waits == [True]
    assert all(each.is_bound and each._launcher is launched for each in launches)
    assert kernel.compiled._run.launch is launched


if __name__ == "__main__":
    main()
