"""The operator inside PyTorch's own machinery: DDP, FSDP2, selective checkpointing, functional calls."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from bench.proof.agreement import pair
from fe_adapter.kernels.spec import AdapterSpec, Weights
from fe_adapter.ops import operator
from tests.train.distributed_worker import leave


class Operations(TorchDispatchMode):
    """Notes every operation of PyTorch and the shapes that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        self.seen.append((str(function), [z.shape for z in outputs if isinstance(z, Tensor)]))
        return result


FORMS = [{"dilation": 2, "activation": "gelu"}, {"dilation": "dynamic", "recompute": "hidden"}]
WORLD = 2


def stack(recompute: str | None = None, **options) -> nn.Sequential:
    """Two adapters in a row with random weights."""
    layers = nn.Sequential()
    for seed in range(2):
        _, layer = pair(6, 4, seed=seed, num_frames=3, **options)
        layer.recompute = recompute
        layers.append(layer)
    return layers


def clips(seed: int = 0) -> Tensor:
    return torch.randn(2 * WORLD * 3, 5, 6, generator=torch.Generator().manual_seed(seed))


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    mean_loss(model, x).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_processes(function: Callable[[int, dict], dict[str, Tensor]], folder: Path, options: dict) -> list[dict]:
    """What ``function(rank, options)`` gives in each of WORLD processes that talk through gloo."""
    torch.multiprocessing.spawn(_start, (function, folder, options), nprocs=WORLD)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(WORLD)]


def _start(rank: int, function: Callable[[int, dict], dict[str, Tensor]], folder: Path, options: dict) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*returned a view")  # of FSDP2
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    save_file(function(rank, options), folder / f"{rank}.safetensors")
    dist.barrier()  # neither leaves while the other still talks
    dist.destroy_process_group()
    leave()


def under_ddp(rank: int, options: dict) -> dict[str, Tensor]:
    """Gradients by name, and the loss over all clips."""
    model, part = DistributedDataParallel(stack(**options)), clips().chunk(WORLD)[rank]
    return gradients(model, part) | {"loss": mean_over_processes(mean_loss(model, part))}


def under_fsdp2(rank: int, options: dict) -> dict[str, Tensor]:
    """The same, of parameters that are shards."""
    model, part = stack(**options), clips().chunk(WORLD)[rank]
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    actual = gradients(model, part)
    loss = mean_over_processes(mean_loss(model, part))
    return {f"module.{name}": gradient.full_tensor() for name, gradient in actual.items()} | {"loss": loss}


def mean_over_processes(value: Tensor) -> Tensor:
    total = value.detach() / WORLD
    dist.all_reduce(total)
    return total


@pytest.mark.parametrize("options", FORMS, ids=["static", "dynamic"])
@pytest.mark.parametrize("train", [under_ddp, under_fsdp2])
def test_two_processes_agree_with_one(train, options, tmp_path):
    single = stack(**options)
    expected = {f"module.{name}": gradient for name, gradient in gradients(single, clips()).items()}
    expected["loss"] = mean_loss(single, clips()).detach()
    for actual in in_processes(train, tmp_path, options):
        assert set(actual) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value)


@pytest.mark.parametrize("options", FORMS, ids=["static", "dynamic"])
def test_selective_checkpointing_can_name_the_operator(options):
    """Named, it runs once forward and once backward; unnamed, forward runs again; the gradients are the same bits."""
    expected = gradients(stack(**options), clips())
    named = functools.partial(create_selective_checkpoint_contexts, [torch.ops.fe_adapter.adapter_forward.default])
    unnamed = functools.partial(create_selective_checkpoint_contexts, [])
    for contexts, calls in ((named, 2), (unnamed, 3)):
        model = stack(**options)
        with mock.patch.object(operator, "choose", wraps=operator.choose) as chosen:
            y = checkpoint(model, clips(), use_reentrant=False, context_fn=contexts)
            y.square().mean().backward()
        assert chosen.call_count == calls * len(model)
        for name, p in model.named_parameters():
            assert torch.equal(p.grad, expected[name]), name


@pytest.mark.parametrize("options", FORMS, ids=["static", "dynamic"])
def test_functional_call_differentiates_what_it_is_given(options):
    model, x = stack(**options), clips()
    expected = gradients(model, x)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.func.functional_call(model, given, (x,)).square().mean().backward()
    for name, p in given.items():
        assert torch.equal(p.grad, expected[name]), name


@pytest.mark.parametrize("design", ["gemm", "fused", "resident", "tail"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_cuda_graph_could_capture_both_directions(design, dynamic):
    """Around the launches, no operation waits for the device, and neither operations nor shapes depend on data."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from bench.proof.ahead import recorded_calls
    from bench.proof.launches import plans_for
    from fe_adapter.kernels import cast, conv, fused, sums
    from fe_adapter.ops.fused import Fused
    from fe_adapter.ops.products import Products

    spec, seen, launched = AdapterSpec((1, 1, 1), 1.5, "gelu", 1, (4, 1), torch.bfloat16), [], []
    for scale in (0.0, 1e4):
        shapes = [(32, 16), (32,), (32, 1, 3, 1, 1), (32,), (16, 32), (16,)] + [(3, 32), (1,)] * dynamic
        weights = Weights(*(scale * torch.randn(shape) for shape in shapes))
        x, dy = scale * torch.randn(2, 2, 2, 5, 16)
        with (
            plans_for("sm_90"),
            recorded_calls(cast, conv, sums) as a,
            recorded_calls(fused) as b,
            Operations() as operations,
        ):
            adapter = (
                Products(x.shape, weights, spec, conv.KernelConvolution)
                if design == "gemm"
                else Fused(x, weights, spec, design)
            )
            _, h, rounded, copies = adapter.forward(x, weights, True)
            adapter.backward(dy, rounded, None, h, copies, weights, True)
        seen.append(operations.seen)
        launched.append([(kernel, options) for kernel, _, options in (*a, *b)])
    assert seen[0] == seen[1]
    assert launched[0] == launched[1] != []
    waits = ("_local_scalar_dense", "nonzero", "equal", "unique", "masked_select", "aten.index.")
    assert not [name for name, _ in seen[0] if any(word in name for word in waits)]
