"""How to train: the settings of a run."""

from __future__ import annotations

import dataclasses
import math
import re

from fe_adapter.checks import MAX_CLIPS, check_choice, check_count, check_num_workers
from fe_adapter.errors import InputError
from fe_adapter.memory.optimizers import check_optimizer
from fe_adapter.memory.policies import is_compilable, parse_policy
from fe_adapter.models.inference import PRECISIONS

CAPTURE = ("auto", "on", "off")
SAMPLERS = ("shuffle", "balanced")
LOSSES = ("cross_entropy", "class_balanced", "focal")
TRACKERS = (None, "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the starting recipe: those of ST-Adapter and its peers, chosen by us.

    Args:
        max_epochs: passes over the training set.
        batch_size: clips at a time, on each device.
        accumulate: batches summed into one optimizer step, in which every clip counts the same.
        optimizer: "adamw"; "sgd", with a momentum of 0.9; or "adamw8bit", whose state is a quarter (bitsandbytes).
        lr: the optimizer's peak learning rate; by default (None) ``base_lr`` times the clips of a step over 256.
        base_lr: learning rate for a step of 256 clips.
        weight_decay: how fast matrices decay; biases, norms and the dilation predictor have none.
        warmup_epochs: epochs of linear warm-up, then a cosine to zero; at most a tenth of the steps.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        clip_grad_norm: largest norm of the gradient.
        precision: "no" (fp32), "bf16" or "fp16" autocast.
        memory_policy: what a step keeps, such as "full:0-5+gelu2bit"; by default (None) what the model does already.
        loss: "cross_entropy"; "class_balanced", by the effective number of clips of every class; or "focal".
        class_balance_beta: of "class_balanced", in [0, 1): 0 weighs classes alike, near 1 by how rare they are.
        focal_gamma: of "focal": 0 is cross-entropy; the larger, the less clips count that are right already.
        mixup: blend pairs of clips, by shares of a Beta(a, a) distribution; 0 does not.
        cutmix: put a part of one clip into another, likewise; with both, each batch has one of them.
        capture: run forward, loss and backward as one CUDA graph, which the host queues as one launch: "auto" where it
            can be, "on", which refuses elsewhere, or "off".
        compile: run the model by `torch.compile`, whose first steps take minutes.
        sampler: "shuffle", or "balanced": every class equally often.
        num_workers: processes that decode; 0 decodes in this one. "auto" is one a core on a GPU, at most 8; on a CPU
            none, or one after an epoch that waited a fifth of its time.
        save_every: steps between checkpoints.
        seed: the seed of the data order, the augmentation and dropout.
        without_lost_files: when a run is resumed, go on without the videos that are gone.
        tracker: "tensorboard" or "wandb", beside the JSON-lines log, or None.
        project: of W&B.
        run_name: what W&B shows the run as; by default (None) the name of its folder.

    Raises:
        InputError: a value is out of range.
    """

    max_epochs: int = 30
    batch_size: int = 8
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float | None = None
    base_lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 2
    label_smoothing: float = 0.1
    loss: str = "cross_entropy"
    class_balance_beta: float = 0.999
    focal_gamma: float = 2.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad_norm: float = 1.0
    precision: str = "no"
    memory_policy: str | None = None
    capture: str = "auto"
    compile: bool = False
    sampler: str = "shuffle"
    num_workers: int | str = "auto"
    save_every: int = 200
    seed: int = 0
    without_lost_files: bool = False
    tracker: str | None = "tensorboard"
    project: str = "fe-adapter"
    run_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_epochs", "save_every"):
            check_count(name, getattr(self, name), 1)
        for name in ("batch_size", "accumulate"):
            check_count(name, getattr(self, name), 1, MAX_CLIPS)
        check_num_workers(self.num_workers)
        check_count("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise InputError(f"seed={self.seed} is too large; it must be below 2^32")
        for name in ("lr", "base_lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value} is not a positive number")
        for name in ("weight_decay", "warmup_epochs", "focal_gamma", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} is not a number of at least 0")
        for name in ("label_smoothing", "class_balance_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is outside [0, 1)")
        check_choice("loss", self.loss, LOSSES)
        for name, loss in (("class_balance_beta", "class_balanced"), ("focal_gamma", "focal")):
            if self.loss != loss and getattr(self, name) != getattr(type(self), name):
                raise InputError(f"{name} is of loss={loss!r}, and the loss is {self.loss!r}; leave it out")
        check_choice("precision", self.precision, tuple(PRECISIONS))
        if self.compile and not is_compilable(self.memory_policy):
            raise InputError(f"memory_policy={self.memory_policy!r} is not for compile, which has a budget of its own")
        if self.memory_policy is not None:
            parse_policy(self.memory_policy)
        check_optimizer(self.optimizer)
        check_choice("capture", self.capture, CAPTURE)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("tracker", self.tracker, TRACKERS)
        if not re.fullmatch(r"[^/\\#?%:\x00-\x1f]{1,128}", self.project):
            raise InputError(f"project={self.project!r} is no name for W&B: 1 to 128 characters, none of / \\ # ? % :")
        if self.run_name is not None and not re.fullmatch(r"[^\x00-\x1f]{1,128}", self.run_name):
            raise InputError(f"run_name={self.run_name!r} is no name for W&B: 1 to 128 characters, in one line")
