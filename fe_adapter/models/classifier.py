"""`VideoClassifier`: an adapted image transformer, a mean over time and a linear head."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter.backbones.backbone import Preprocessing, plain_name
from fe_adapter.backbones.build import build_backbone
from fe_adapter.backbones.describe import describe_backbone
from fe_adapter.backbones.probe import check_frames
from fe_adapter.checks import check_choice, check_count
from fe_adapter.config import FEAdapterConfig
from fe_adapter.errors import InputError
from fe_adapter.models.adaptation import active_adapters, adapt, get_adaptation, set_num_frames
from fe_adapter.models.origin import remember
from fe_adapter.models.pooling import AttentionPool
from fe_adapter.models.prefix import starting_from
from fe_adapter.models.task import Task

_log = logging.getLogger("fe_adapter")
TUNE = ("adapter", "head", "full")
TEMPORAL_POOL = ("mean", "concat", "attention")


class VideoClassifier(nn.Module):
    """Class logits of a clip: a frame feature for every frame, pooled over time, then a linear layer.

    The frame feature is the class token (the mean of the patches where the backbone has none or pools by mean) after
    the final norm, before any projection, pooler or head.

    Args:
        vit: image transformer, adapted or not; of a model with a text tower or a head, the transformer alone is kept.
        num_classes: C; or give ``class_names``.
        class_names: C different names, in the order of the logits.
        config: which adapters, for ``tune="adapter"``; None is ``FEAdapterConfig()``.
        num_frames: frames T of a clip. Other lengths work too with ``temporal_pool="mean"``.
        tune: what trains beside the head: "adapter" (the backbone is frozen), "head" (nothing; no adapters), or "full"
            (the whole backbone; no adapters).
        temporal_pool: "mean" over frames; "concat": the head sees every frame's feature in order; or "attention" of a
            learned token over them and their positions (`fe_adapter.models.pooling`).
        head_dropout: before the head, while training.
        resize: scale clips of another size; otherwise they are refused.
        preprocessing: what the backbone was trained with; None reads it from the backbone.

    Shape:
        ``(B, T, 3, h, w)`` uint8, or float in [0, 1]; logits ``(B, C)``. Or the tokens ``(B, T, L, D)`` that the first
        adapted block is given (`fe_adapter.train.feature_cache`), from which the backbone goes on.

    Raises:
        InputError: options do not fit together, or the backbone cannot be adapted.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        num_classes: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
        config: FEAdapterConfig | None = None,
        num_frames: int | None = None,
        tune: str = "adapter",
        temporal_pool: str = "mean",
        head_dropout: float = 0.0,
        resize: bool = False,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        check_choice("tune", tune, TUNE)
        check_choice("temporal_pool", temporal_pool, TEMPORAL_POOL)
        if not 0 <= head_dropout < 1:
            raise InputError(f"head_dropout={head_dropout} is outside [0, 1)")
        self.class_names = _class_names(num_classes, class_names)
        if type(vit).__name__ == "OptimizedModule" or vit.__dict__.get("_compiled_call_impl") is not None:
            _log.warning("a compiled backbone is called by its parts, as it was before; compile the classifier instead")
        backbone = describe_backbone(vit)
        check_frames(backbone)
        self.vit = backbone.vit
        self._frame_features = backbone.frame_features
        preprocessing = preprocessing or backbone.preprocessing
        if preprocessing is None:
            raise InputError("the backbone does not say its image size, mean and std; give preprocessing")
        self.preprocessing = preprocessing
        self.tune, self.temporal_pool, self.resize = tune, temporal_pool, resize
        self.backbone_name: str | None = None
        self.backbone_args: dict[str, Any] = {}
        self.backbone_weights: str | None = None
        self.clip_seconds: float | None = None  # length of the clips it was trained on, where known
        self.temperature = 1.0  # of the softmax in `probabilities`, as training fitted it to the validation set
        self.note: str | None = None  # what whoever predicts with it should know
        self.clip_sampling: dict[str, Any] | None = None  # sampling, stride and val_fraction of its training, likewise
        self.faces: dict[str, Any] | None = None  # a `fe_adapter.data.FaceRecipe`, where it was trained on faces

        is_adapted = hasattr(self.vit, "fe_adaptation")
        if num_frames is None and not is_adapted:
            raise InputError("give num_frames, the number of frames of a clip")
        self.num_frames = check_count(
            "num_frames", get_adaptation(self.vit).num_frames if num_frames is None else num_frames, 1
        )
        if tune == "adapter":
            if not is_adapted:
                adapt(self.vit, config, num_frames=self.num_frames)
            elif config is not None and config != get_adaptation(self.vit).config:
                raise InputError("vit is adapted already, with another config; leave config out or unadapt it first")
        elif is_adapted or config is not None:
            raise InputError(f"tune={tune!r} uses no adapters; leave config out and give a plain vit")
        else:
            remember(self.vit)
            self.vit.requires_grad_(tune == "full")
        parameter = next(self.vit.parameters())
        self._check_temporal_pool(temporal_pool)
        self.embed_dim = backbone.embed_dim
        self.dropout = nn.Dropout(head_dropout)
        self.pool, self.head = self._fresh(len(self.class_names), self.temporal_pool, parameter.device)
        self.adapter = get_adaptation(self.vit).active if tune == "adapter" else None  # whose head this is
        self.put_by = nn.ModuleDict()  # tasks of adapters that are not active
        self.names: tuple[str, ...] | None = None  # adapters of the clips of a batch, see `use_adapters`
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocessing, name), device=parameter.device).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.parameter_names = frozenset(map(plain_name, self.vit.state_dict()))  # of what can be built again

    @classmethod
    def from_name(
        cls,
        name: str,
        num_classes: int | None = None,
        *,
        weights: str | Path | None = "pretrained",
        backbone_args: dict[str, Any] | None = None,
        **options: Any,
    ) -> VideoClassifier:
        """Build backbone and classifier; the name is remembered, so that `load_classifier` needs no ``vit``.

        Args:
            name: "timm:NAME", "hf:NAME", "openclip:NAME/TAG" or "torchvision:NAME".
            num_classes: C; or give ``class_names``.
            weights: "pretrained" (what the library fetches or has cached), a local FILE or FOLDER, or None or "none"
                for random ones.
            backbone_args: further arguments of the library's model or config, such as ``{"img_size": 96}``.
            options: as of the class.

        Raises:
            InputError: an unknown name, weights that do not fit or cannot be had, or a missing library.
        """
        vit = build_backbone(name, weights, backbone_args or {})
        model = cls(vit, num_classes, **options)
        model.backbone_name, model.backbone_args = name, dict(backbone_args or {})
        source = "none" if weights is None else str(weights)
        model.backbone_weights = source if source in ("pretrained", "none") else str(Path(source).resolve())
        return model

    def forward(self, video: Tensor) -> Tensor:
        B, T = video.shape[:2]
        if self.names is not None and len(self.names) != B:
            raise InputError(f"{len(self.names)} adapter names for {B} clips; give one name for each clip")
        if self._are_tokens(video):
            tokens = video.flatten(0, 1).to(next(self.vit.parameters()).dtype)
            images = tokens.new_zeros(B * T, 3, *self.preprocessing.size)
            start: contextlib.AbstractContextManager[None] = starting_from(self.vit, tokens)
        else:
            images, start = self.normalized(video), contextlib.nullcontext()
        if self.tune == "adapter" and any(adapter.num_frames != T for adapter in active_adapters(self.vit)):
            set_num_frames(self.vit, T)
        with start:
            features = self.frame_features(images).unflatten(0, (B, T))
        if self.names is None:
            return self.classify(self._pooled(features))
        return self._each_its_own(features)

    def _each_its_own(self, features: Tensor) -> Tensor:
        """Logits of clips, those of each name by the head of that name."""
        assert self.names is not None
        logits: list[Any] = [None] * len(self.names)
        for name in dict.fromkeys(self.names):
            rows, task = [i for i, other in enumerate(self.names) if other == name], self.task(name)
            for i, row in zip(rows, self.classify(self._pooled(features[rows], task), task), strict=True):
                logits[i] = row
        return torch.stack(logits)

    def task(self, adapter: str) -> VideoClassifier | Task:
        """Head, pool, class names and the like that belong to an adapter; of the active one they are the classifier's.

        Raises:
            InputError: this classifier has no head for it.
        """
        if adapter == self.adapter:
            return self
        if Task.key(adapter) not in self.put_by:
            raise InputError(
                f"this classifier has no head for the adapter {adapter!r}; add it to the classifier, not its backbone"
            )
        return self.put_by[Task.key(adapter)]  # type: ignore[return-value]

    def temperatures(self) -> float | Tensor:
        """What logits are divided by before the softmax; where each clip has its own adapter, ``(B, 1)``."""
        if self.names is None:
            return self.temperature
        return torch.tensor([[self.task(name).temperature] for name in self.names], device=self.head.weight.device)

    def new_task(self, class_names: Sequence[str] | None, temporal_pool: str | None) -> Task:
        """One with a fresh head, and what is not given as in the present one."""
        values: dict[str, Any] = {
            "class_names": _class_names(None, self.class_names if class_names is None else class_names),
            "num_frames": self.num_frames,
            "temporal_pool": temporal_pool or self.temporal_pool,
            "clip_seconds": None,
            "clip_sampling": None,
            "faces": None,
            "note": None,
            "temperature": 1.0,
        }
        check_choice("temporal_pool", values["temporal_pool"], TEMPORAL_POOL)
        self._check_temporal_pool(values["temporal_pool"])
        like = self.head.weight
        pool, head = self._fresh(len(values["class_names"]), values["temporal_pool"], like.device)
        modules: dict[str, nn.Module | None] = {"pool": pool, "dropout": nn.Dropout(self.dropout.p), "head": head}
        return Task(values, modules).to(like.dtype)

    def _fresh(
        self, num_classes: int, temporal_pool: str, device: torch.device
    ) -> tuple[AttentionPool | None, nn.Linear]:
        """A pool and a head that know nothing yet."""
        pools = temporal_pool == "attention"
        pool = AttentionPool(self.embed_dim, self.num_frames).to(device) if pools else None
        head = nn.Linear(self._head_width(temporal_pool), num_classes, device=device)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return pool, head

    def frame_features(self, images: Tensor) -> Tensor:
        """What the backbone says ``(n, D)`` of `normalized` images ``(n, 3, height, width)``."""
        return self._frame_features(self.vit, images)

    def _pooled(self, features: Tensor, task: VideoClassifier | Task | None = None) -> Tensor:
        task = task or self
        if task.pool is not None:
            return task.pool(features.to(task.head.weight.dtype))
        return features.mean(1) if task.temporal_pool == "mean" else features.flatten(1)

    def classify(self, pooled: Tensor, task: VideoClassifier | Task | None = None) -> Tensor:
        """Logits ``(B, C)`` of frame features that are pooled over time; None is by the active adapter's head."""
        task = task or self
        if self.tune == "adapter" and self.adapter != get_adaptation(self.vit).active:
            raise InputError(
                "another adapter was set on the backbone alone, not its head; give set_adapter the classifier"
            )
        return task.head(task.dropout(pooled.to(task.head.weight.dtype)))

    def _are_tokens(self, video: Tensor) -> bool:
        """Whether it holds what the frozen prefix would compute, in the place of frames."""
        return video.dim() == 4 and self.tune == "adapter" and video.shape[-1] == get_adaptation(self.vit).embed_dim

    def train(self, mode: bool = True) -> VideoClassifier:
        """Set training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.tune == "head":
            self.vit.eval()
        return self

    def __prepare_scriptable__(self) -> NoReturn:  # what torch.jit.script asks of every module first
        raise RuntimeError("torch.jit.script does not know video classifiers; use torch.export")

    def extra_repr(self) -> str:
        return f"{len(self.class_names)} classes, num_frames={self.num_frames}, tune={self.tune!r}"

    def has_its_preprocessing(self) -> bool:
        """Whether the buffers ``mean`` and ``std`` are those of `preprocessing`."""
        own, given = (self.mean, self.std), (self.preprocessing.mean, self.preprocessing.std)
        # by way of fp32, as the buffers themselves came to their dtype
        return all(torch.equal(a.flatten().cpu(), torch.tensor(b).to(a.dtype)) for a, b in zip(own, given, strict=True))

    def head_shape(self) -> tuple[int, int]:
        """Of the head's weight: classes, and width of the pooled features."""
        return len(self.class_names), self._head_width(self.temporal_pool)

    def _head_width(self, temporal_pool: str) -> int:
        return self.embed_dim * (self.num_frames if temporal_pool == "concat" else 1)

    def _check_temporal_pool(self, temporal_pool: str) -> None:
        if temporal_pool != "mean" and self.num_frames < 2:
            raise InputError(f"temporal_pool={temporal_pool!r} needs at least two frames")

    def normalized(self, video: Tensor) -> Tensor:
        """``(B, T, 3, h, w)`` -> ``(B*T, 3, height, width)`` as the backbone wants it."""
        if video.dim() != 5 or video.shape[2] != 3:
            raise InputError(f"a video is (B, T, 3, h, w); got {tuple(video.shape)}")
        if video.dtype != torch.uint8 and not video.is_floating_point():
            raise TypeError(f"a video is uint8, or float in [0, 1]; got {video.dtype}")
        for task in (self,) if self.names is None else map(self.task, dict.fromkeys(self.names)):
            if task.temporal_pool != "mean" and video.shape[1] != task.num_frames:
                raise InputError(f"the head was built for {task.num_frames} frames; got {video.shape[1]}")
        size = self.preprocessing.size
        if tuple(video.shape[-2:]) != size and not self.resize:
            raise InputError(
                f"the backbone takes frames of {size[0]}x{size[1]}; got {video.shape[-2]}x{video.shape[-1]} "
                "(resize=True scales them)"
            )
        dtype = next(self.vit.parameters()).dtype
        images = video.flatten(0, 1).to(torch.float32 if video.dtype == torch.uint8 else video.dtype)
        if video.dtype == torch.uint8:
            images = images / 255
        if tuple(images.shape[-2:]) != size:
            mode = self.preprocessing.interpolation
            options = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": mode, "antialias": True}
            images = F.interpolate(images, size, **options)
        return ((images - self.mean) / self.std).to(dtype)

    def describe(self) -> dict[str, Any]:
        """What `load_classifier` needs to build the same classifier again, as plain values."""
        return {
            "class_names": list(self.class_names),
            "num_frames": self.num_frames,
            "tune": self.tune,
            "temporal_pool": self.temporal_pool,
            "head_dropout": self.dropout.p,
            "resize": self.resize,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "clip_seconds": self.clip_seconds,
            "clip_sampling": self.clip_sampling,
            "faces": self.faces,
            "note": self.note,
            "temperature": self.temperature,
        }


def expected_frames(model: VideoClassifier) -> tuple[tuple[int, int], str, float]:
    """Size, interpolation and crop of the frames that ``model`` is given."""
    return model.preprocessing.size, model.preprocessing.interpolation, model.preprocessing.crop


def _class_names(num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names is None:
        if num_classes is None:
            raise InputError("give num_classes or class_names")
        return tuple(str(i) for i in range(check_count("num_classes", num_classes, 1)))
    names = tuple(class_names)
    are_names = all(isinstance(name, str) and name for name in names)
    if isinstance(class_names, str) or not names or not are_names or len(set(names)) != len(names):
        raise InputError(f"class_names={class_names!r} must be a list of different names")
    if num_classes is not None and num_classes != len(names):
        raise InputError(f"num_classes={num_classes}, but there are {len(names)} class_names")
    return names
