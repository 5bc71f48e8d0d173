"""What `test_distributed` runs in each of several processes: ``torchrun … distributed_worker.py CASE FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F

from fe_adapter import FEAdapterConfig, VideoClassifier, apply_memory_policy
from fe_adapter.cli import app as cli
from fe_adapter.models.adaptation import trainable_parameters
from fe_adapter.train import recipe
from fe_adapter.train.state import Progress, load_training_state, save_training_state
from tests.vits import build


def sharded_training(folder: Path) -> None:
    """FSDP2 over blocks, policies on them: three steps, a checkpoint, three more; and again from the checkpoint."""
    losses = sharded_steps(folder, steps=6, save_after=3)
    again = sharded_steps(folder, steps=3, resume=True)
    if distributed.get_rank() == 0:
        torch.save({"losses": losses, "resumed": again}, folder / "losses.pt")


def sharded_steps(folder: Path, steps: int, save_after: int | None = None, resume: bool = False) -> list[float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, rank, world = classifier(), distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for block in model.vit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    if resume:
        load_training_state(folder / "sharded.safetensors", model, optimizer, None, {})
    losses = []
    for step in range(3 if resume else 0, steps + (3 if resume else 0)):
        video, label = batch(step)
        losses.append(one_step(model, optimizer, video[rank::world], label[rank::world]))
        if save_after == step + 1:
            save_training_state(folder / "sharded.safetensors", model, optimizer, None, Progress(), {})
    return losses


def classifier() -> VideoClassifier:
    """The same in every process."""
    model = VideoClassifier(build("timm vit"), 3, num_frames=2, config=FEAdapterConfig(bottleneck=8))
    return apply_memory_policy(model, "full:0+gelu2bit").train()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(4, 2, 3, 32, 32, generator=generator), torch.randint(0, 3, (4,), generator=generator)


def one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, video, label) -> float:
    loss = F.cross_entropy(model(video), label)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    value = loss.detach()
    if distributed.is_initialized():
        distributed.all_reduce(value)
        value = value / distributed.get_world_size()
    return value.item()


def killed_training(arguments: list[str]) -> int:
    """Training of which the second process is killed in its fourth step."""
    run_batch = recipe._Run._batch

    def maybe_die(self, *arguments):
        if os.environ["RANK"] == "1" and self.position.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_batch(self, *arguments)

    recipe._Run._batch = maybe_die
    return cli.run(arguments)


def main(case: str, *arguments: str) -> int:
    torch.set_num_threads(1)
    if case == "killed":
        return killed_training(list(arguments))
    if case == "train":
        return cli.run(list(arguments))
    distributed.init_process_group("gloo")
    sharded_training(Path(arguments[0]))
    distributed.barrier()
    distributed.destroy_process_group()
    return 0


def leave(code: int = 0) -> None:
    """End this process without Python's shutdown.

    Gloo's threads may still hold tensors, and abort a Python that shuts down around them (pytorch#179291, #190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
