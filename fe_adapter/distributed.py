"""The little that a run of several processes needs beside Accelerate: whole tensors of sharded ones, and back."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import Tensor


def is_first_process() -> bool:
    """Whether this process writes files: the only one, or the first of a group."""
    return process_index() == 0


def num_processes() -> int:
    return torch.distributed.get_world_size() if _has_group() else 1


def process_index() -> int:
    return torch.distributed.get_rank() if _has_group() else 0


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 has sharded (every process must ask), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, parameter: Any) -> Tensor:
    """``tensor``, which every process has whole, on the device of ``parameter`` and sharded as it is."""
    tensor = tensor.to(parameter.device)
    if not hasattr(parameter, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes, in all of them."""
    if num_processes() == 1:
        return items
    gathered: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
