"""What a step minimises: cross-entropy, class-balanced or focal, of labels or of shares; and clips that are mixed.

With target shares ``t`` (of one label: 1 at its class; smoothed as `TrainConfig.label_smoothing` says) and ``p`` the
softmax of the logits, the loss of a clip is

    cross_entropy   −Σ_c t_c log p_c
    class_balanced  −Σ_c w_c t_c log p_c,  w_c ∝ (1 − β) / (1 − β^n_c)   (Cui et al., CVPR 2019), mean 1 over clips
    focal           −Σ_c t_c (1 − p_c)^γ log p_c                         (Lin et al., ICCV 2017)

and that of a batch the mean over its clips, so that batches add up to a step whatever they hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fe_adapter.data.protocol import ClipDataset
from fe_adapter.errors import InputError
from fe_adapter.train.config import TrainConfig


class Criterion:
    """The loss of a run.

    Args:
        config: which loss, and what is mixed.
        train_set: its labels say how frequent classes are; its items may have a ``target``, ``(C,)`` shares.

    Raises:
        InputError: clips are to be mixed, and torchvision is missing.
    """

    def __init__(self, config: TrainConfig, train_set: ClipDataset) -> None:
        self.config, self.num_classes = config, len(train_set.class_names)
        counts = torch.bincount(torch.tensor(train_set.labels), minlength=self.num_classes).double()
        self._weights = balanced_weights(counts, config.class_balance_beta).float()
        self._mixers = _mixers(config)

    def prepare(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Video and targets of a batch, ``(B,)`` labels or ``(B, C)`` shares, mixed if that is asked for.

        Mixing draws from the global generator, which `fit` seeds for every batch.
        """
        video, target = batch["video"], batch.get("target", batch["label"])
        self._weights = self._weights.to(video.device)  # once: a step that is captured may not copy from the host
        if not self._mixers or len(video) < 2:
            return video, target
        if video.dim() != 5:
            raise InputError("mixup and cutmix mix frames, and cached features are none")
        from torchvision import tv_tensors

        mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        if target.dim() == 1:
            target = F.one_hot(target, self.num_classes).float()
        frames = video / 255 if video.dtype == torch.uint8 else video
        mixed, target = mixer(tv_tensors.Video(frames), target)
        return mixed.as_subclass(Tensor), target

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of float32 logits ``(B, C)``."""
        smoothing = self.config.label_smoothing
        if self.config.loss == "cross_entropy":
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        shares = F.one_hot(target, self.num_classes).float() if target.dim() == 1 else target
        shares = shares * (1 - smoothing) + smoothing / self.num_classes
        log_p = logits.log_softmax(-1)
        if self.config.loss == "class_balanced":
            weights = self._weights
        else:
            weights = (1 - log_p.exp()) ** self.config.focal_gamma
        return -(weights * shares * log_p).sum(-1).mean()


def balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """``(C,)`` weights of classes by their effective number of clips, 1 in the mean over clips; 0 of absent ones."""
    weights = torch.where(counts > 0, (1 - beta) / (1 - beta ** counts.clamp_min(1)), 0)
    return weights * counts.sum() / (weights * counts).sum()


def _mixers(config: TrainConfig) -> list[Any]:
    if not config.mixup and not config.cutmix:
        return []
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise InputError("mixup and cutmix need torchvision; pip install 'fe-adapter[timm]'") from None
    kinds = ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
    return [kind(alpha=alpha) for kind, alpha in kinds if alpha]
