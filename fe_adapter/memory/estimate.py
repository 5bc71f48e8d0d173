"""Memory of a training step, estimated on fake tensors before anything is allocated."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fe_adapter.backbones import hf_vit
from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_choice
from fe_adapter.errors import InputError
from fe_adapter.kernels import scratch
from fe_adapter.kernels.spec import CONV_ROWS, AdapterSpec, ConvGradients, Rows, Weights
from fe_adapter.kernels.support import is_interpreting
from fe_adapter.memory import xformers
from fe_adapter.memory.checkpointing import Checkpoint, HostMemory
from fe_adapter.memory.cost import Work
from fe_adapter.memory.measure import SavedStorages
from fe_adapter.memory.optimizers import check_optimizer, state_bytes, step_bytes
from fe_adapter.memory.policies import apply_memory_policy
from fe_adapter.models.inference import PRECISIONS
from fe_adapter.ops import dispatch, gelu2bit, operator

# What operators of our own run with and without kernels. Those of gelu2bit allocate their results only.
_IMPLEMENTATIONS = {
    False: {**operator.IMPLEMENTATIONS, **gelu2bit.IMPLEMENTATIONS},
    True: operator.IMPLEMENTATIONS,
}
DEVICES = ("cpu", "cuda")
_COUNTED = ("products", "attention", "moved", "crossed", "operators", "adapters", "gelus", "checkpoints", "choices")
_ALLOCATOR_BLOCK = {"cpu": 1, "cuda": 512}  # bytes that an allocation is rounded up to


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step, and what it costs."""

    parameters: int  # and buffers
    inputs: int
    gradients: int
    optimizer: int  # its state
    saved: int  # distinct storages autograd keeps for backward, parameters left out
    peak: int  # the most alive at once, all of the above included
    captured_peak: int  # the same, of a step that is a CUDA graph, whose memory nothing else can use
    work: Work  # what a step does, for `fe_adapter.memory.cost`

    @property
    def resident(self) -> int:
        """Bytes that are there before the first step."""
        return self.parameters + self.inputs


def estimate_memory(
    model: nn.Module,
    *input_shape: int,
    dtype: torch.dtype = torch.float32,
    precision: str = "no",
    policy: str | None = None,
    accumulate: int = 1,
    optimizer: str = "adamw",
    device: str | None = None,
) -> MemoryEstimate:
    """What a training step of ``model`` would hold, counted on fake tensors: nothing is computed or allocated.

    What a library allocates inside one of PyTorch's operators is not seen, nor is an allocator's fragmentation. The
    adapters are counted as the backend of the device runs them: eager on a CPU, design ``gemm`` on a GPU.

    A captured step (`fe_adapter.train.step`) has inputs of its own beside the batch, gradients that stay, and a pool
    for all it ever holds at once, which is kept for it: the optimizer and a validation batch need theirs beside that.

    Args:
        model: any module that takes one tensor; it is left as it is. It may be on the meta device.
        input_shape: of that tensor, for a `VideoClassifier` ``B, T, 3, height, width``.
        dtype: of that tensor; `fit` feeds ``torch.uint8``.
        precision: "no", or "bf16" or "fp16" autocast.
        policy: as of `apply_memory_policy`, added to those the model has.
        accumulate: batches summed into a step; of several, all but the first find gradients there already.
        optimizer: "adamw", "sgd" or "adamw8bit", as of `TrainConfig`.
        device: "cpu" or "cuda", whose autocast and allocator are imitated; None is where the model is, the meta device
            counting as "cuda".

    Raises:
        InputError: an unknown precision, optimizer, device or policy; the model asks for values (``.item()``).

    Example:
        >>> estimate_memory(classifier, 8, 16, 3, 224, 224, policy="full").peak / 2**30  # GiB
    """
    check_choice("precision", precision, tuple(PRECISIONS))
    check_optimizer(optimizer)
    if device is None:
        device = "cpu" if all(p.device.type == "cpu" for p in model.parameters()) else "cuda"
    check_choice("device", device, DEVICES)
    fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
    model = unwrapped(model)
    with (
        torch.compiler.set_stance("force_eager"),
        _without_caches(model),
        _values_refused(),
        fake_tensors,
        _Storages(device) as live,
        _imitated(device),
        Checkpoint.observed(lambda what: live.counts.update([what])),
    ):
        fake = copy_without_values(model, "cpu")
        if policy is not None:
            apply_memory_policy(fake, policy)
        xformers.undo(getattr(fake, "vit", fake))  # its kernels do not run here, and PyTorch's attention keeps as much
        for tensor in (*fake.parameters(), *fake.buffers()):
            live.add(tensor)
        parameters = live.bytes
        x = torch.empty(input_shape, dtype=dtype)
        inputs = live.bytes - parameters
        held = live.restart()  # from here on it is the step's
        trainable = [p for p in fake.parameters() if p.requires_grad]
        gradients = sum(p.nbytes for p in trainable)
        for p in trainable if accumulate > 1 else ():
            p.grad = torch.empty_like(p)
        state = state_bytes(optimizer, trainable)  # counted, not run: it is a third of the operators
        live.add_bytes(state)
        saved = SavedStorages(fake)
        with saved:
            with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "no"):
                output = fake(x)
            loss = output.float().sum()
            del output
            num_saved = saved.alive() if trainable else 0
        beside = step_bytes(optimizer, trainable, device) if trainable else 0
        if trainable:
            loss.backward()
            # a captured step: gradients stay, so that there is no moment before they are
            pool = max(live.peak - held - state, gradients)
            live.add_bytes(beside)
        else:
            pool = live.peak - held
        peak, work = live.peak, live.work(gradients, len(trainable))
        del loss
        first = live.restart()
        with torch.no_grad(), torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "no"):
            fake(x)
        beside = max(beside, live.peak - first)
    captured_peak = held + inputs + state + gradients + pool + beside
    return MemoryEstimate(parameters, inputs, gradients, state, num_saved, peak, captured_peak, work)


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, the most that ever were, and what the operators do."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.counts: Counter[str] = Counter()
        self._block, self._implementations = _ALLOCATOR_BLOCK[device], _IMPLEMENTATIONS[_has_kernels(device)]
        self._inside: dict[str, tuple[int, Counter[str]]] = {}
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen and tensor.device.type == "cpu":
            size = self._seen[storage] = -(-storage.nbytes() // self._block) * self._block
            self.add_bytes(size)
            weakref.finalize(storage, self._free, size)

    def restart(self) -> int:
        """Forget the peak and what was done; the bytes that are alive."""
        self.peak = self.bytes
        self.counts.clear()
        return self.bytes

    def work(self, gradients: int, parameters: int) -> Work:
        """What was done since `restart`."""
        counted: Any = {name: self.counts[name] for name in _COUNTED}
        return Work(gradients=gradients, parameters=parameters, **counted)

    def add_bytes(self, num_bytes: int) -> None:
        self.bytes += num_bytes
        self.peak = max(self.peak, self.bytes)

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self._implementations:
            return self._look_inside(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self._count(func, args, kwargs or {}, out)
        return out

    def _look_inside(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Count an operator's own temporary tensors and operators, too; all calls alike are looked into once."""
        key = repr((func, tree_map(lambda a: (a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a, args)))
        bytes_before, peak_before, counts_before = self.bytes, self.peak, self.counts
        if key in self._inside:
            out = func(*args, **kwargs)
            peak, counts = self._inside[key]
            self.peak = max(self.peak, bytes_before + peak)
            self.counts += counts
            for leaf in tree_leaves(out):
                self.add(leaf)
            return out
        self.peak, self.counts = self.bytes, Counter()
        with self:
            out = self._implementations[func](*args, **kwargs)
        del self.counts["operators"]  # the host runs the whole at its own pace
        self.counts["adapters"] = 1
        self._inside[key] = self.peak - bytes_before, self.counts
        self.peak, self.counts = max(self.peak, peak_before), counts_before + self.counts
        return out

    def _count(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        packet = func.overloadpacket
        if func.namespace == "prim" or func.is_view or "empty" in func.name() or "unsafe_view" in func.name():
            return  # nothing is launched
        if packet in flop_registry:
            kind = "attention" if "attention" in func.name() else "products"
            self.counts[kind] += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.counts["attention"] += sdpa_flop_count(*(t.shape for t in args[:3]))
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.counts["attention"] += sdpa_backward_flop_count(*(t.shape for t in args[:4]))
        else:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
            crosses = any(tensor.device.type != "cpu" for tensor in tensors.values())
            self.counts["crossed" if crosses else "moved"] += sum(tensor.nbytes for tensor in tensors.values())
        self.counts["gelus"] += func.namespace == "fe_adapter"
        self.counts["operators"] += 1


@contextlib.contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Keep real tensors of caches out of an estimate, and the fake ones of an estimate out of later calls."""
    hf_vit.clear_caches(model)
    try:
        yield
    finally:
        hf_vit.clear_caches(model)


@contextlib.contextmanager
def _values_refused() -> Iterator[None]:
    try:
        yield
    except DataDependentOutputException as error:
        raise InputError(f"the model asks for values on its way ({error}), which an estimate does not have") from None


@contextlib.contextmanager
def _imitated(device: str) -> Iterator[None]:
    """Fake tensors are on the CPU (others would need a driver): let them behave as on ``device``."""
    with dispatch.imagine(_KernelConvolution) if _has_kernels(device) else contextlib.nullcontext():
        if device == "cpu":
            yield
            return
        library = torch.library.Library("aten", "IMPL")
        for op in (torch.ops.aten.layer_norm.default, torch.ops.aten.softmax.int):
            library.impl(op, partial(_in_float32, op), "AutocastCPU")  # as CUDA's autocast, and not a CPU's, runs them
        HostMemory.device = torch.device("meta")  # anything but the device that is counted
        try:
            yield
        finally:
            HostMemory.device = torch.device("cpu")
            library._destroy()


def _has_kernels(device: str) -> bool:
    return device == "cuda" or is_interpreting()


def _in_float32(op: Any, *args: Any, **kwargs: Any) -> Tensor:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    with torch.autocast("cpu", enabled=False):
        return op(*tree_map(cast, args), **kwargs)


class _KernelConvolution:
    """What `KernelConvolution` of `fe_adapter.kernels.conv` allocates, and nothing else: tensors are fake."""

    reuses_rows = False

    def __init__(self, shape: torch.Size, weights: Weights, spec: AdapterSpec) -> None:
        self._spec, self._embed_dim = spec, shape[-1]

    @staticmethod
    def cast(weights: Weights, dtype: torch.dtype) -> Tensor:
        return weights.down.new_empty(weights.flat_starts()[-1], dtype=dtype)

    def rows(self, h: Tensor) -> Rows:
        return scratch.empty_rows(h, self._spec.num_prefix_tokens, self._embed_dim)

    def activate(self, h: Tensor, weights: Weights, rows: Rows) -> None:
        pass

    def backward_activation(
        self, dphi: Tensor, h: Tensor, weights: Weights, rows: Rows
    ) -> tuple[Tensor, scratch.ConvScratch]:
        programs = scratch.token_programs(h, self._spec.num_prefix_tokens, CONV_ROWS)
        return dphi, scratch.conv_scratch(h, weights, programs)

    def backward_hidden(
        self, dc: Tensor, h: Tensor, weights: Weights, rows: Rows, state: scratch.ConvScratch
    ) -> ConvGradients:
        sums_h = scratch.hidden_sums(h, scratch.token_programs(h, 0, CONV_ROWS))
        held = state, sums_h  # both there until the gradients are made
        return scratch.conv_gradients(weights, self._spec.gradient_dtype) if held else None


def copy_without_values(model: Any, device: str) -> Any:
    """A copy of a module whose parameters and buffers are new ones on ``device``, not filled."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) not in (nn.Parameter, Tensor):
            raise InputError(f"cannot count a {type(parameter).__name__}: ask before weights are sharded")
        empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype, device=device)
    return copy.deepcopy(model, memo)
