"""How long a training step takes: on the device as one CUDA graph, or launch by launch at the pace of the host.

A GPU computes while the host queues, so an eager step takes as long as the slower of the two; a captured one is queued
as one launch. Rates and host costs are fitted to the 39 steps that an H100 machine has measured (ViT-B and L, 8 to 128
frames, all policies; eager), and give them within 15 %, over full fine-tuning's and in milliseconds alike
(`tests/memory/test_cost.py`). Adapters cost the host less now than they did then: `ADAPTER` of today is a prediction,
from host times on an imitated CUDA, and so is every captured step, of which none has been measured.
"""

from __future__ import annotations

import dataclasses

PRODUCTS, ATTENTION = 650e12, 240e12  # FLOP/s
MEMORY = 1.65e12  # bytes/s that operators which are no products read and write
TO_HOST = 0.13e12  # bytes/s, both ends counted
OPERATOR = 39e-6  # seconds of the host, as all that follow
PARAMETER = 70e-6  # one that trains: its gradient's accumulation, the optimizer's bookkeeping
ADAPTER = 0.45e-3  # its forward, or its backward: a static ViT-B takes the host 0.94 of full fine-tuning's time a step
ADAPTER_BEFORE = 1.8e-3  # when the H100's rows were measured: 24 to 29 launches a layer, by Triton's own launcher
GELU2BIT = 0.28e-3
CHECKPOINT = 0.89e-3  # of a block: hooks, another graph, a second run's bookkeeping
CHOICE = 69e-6  # of an operator, kept or run again, in Python: policy selective
REPLAY = 1e-3  # of a captured step: its inputs' copies, the graph's launch, clipping, the optimizer
OPTIMIZER = 7  # passes over the gradients' bytes in a step of AdamW
_FLOPS_PER_BYTE_ON_CPU = 15.0  # a choice, for ratios only: about 150 GFLOP/s to 10 GB/s


@dataclasses.dataclass(frozen=True)
class Work:
    """What a training step does."""

    products: float  # FLOPs
    attention: float  # FLOPs
    moved: int  # bytes that other operators read and write
    crossed: int  # bytes between a GPU and the host's memory, both ends counted
    gradients: int  # bytes
    operators: int  # those that launch something, adapters' own left out
    parameters: int  # tensors that train
    adapters: int = 0  # forward and backward passes of adapters
    gelus: int = 0  # passes of gelu2bit
    checkpoints: int = 0  # blocks that are run again
    choices: int = 0  # of policy selective


def device_seconds(work: Work) -> float:
    """What an H100 takes for a step, and a captured one therefore takes at least."""
    moved = (work.moved + OPTIMIZER * work.gradients) / MEMORY
    return work.products / PRODUCTS + work.attention / ATTENTION + moved + work.crossed / TO_HOST


def host_seconds(work: Work, adapter: float = ADAPTER) -> float:
    """What the host takes to queue a step launch by launch; ``adapter`` seconds for each pass of an adapter."""
    plain = work.operators * OPERATOR + work.parameters * PARAMETER + work.adapters * adapter
    return plain + work.gelus * GELU2BIT + work.checkpoints * CHECKPOINT + work.choices * CHOICE


def captured_seconds(work: Work) -> float:
    """A step whose forward, loss and backward are one CUDA graph."""
    return max(device_seconds(work), REPLAY)


def eager_seconds(work: Work, adapter: float = ADAPTER) -> float:
    """A step that the host queues launch by launch; near the crossing of both, neither hides all of the other."""
    return (device_seconds(work) ** 8 + host_seconds(work, adapter) ** 8) ** (1 / 8)


def cpu_cost(work: Work) -> float:
    """Of a step on a CPU: FLOPs, and bytes at their worth. Only ratios mean something."""
    return work.products + work.attention + _FLOPS_PER_BYTE_ON_CPU * (work.moved + work.crossed)
