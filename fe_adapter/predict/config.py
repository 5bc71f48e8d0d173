"""How videos are predicted: all that a run of ``fe-adapter predict`` is told about it."""

from __future__ import annotations

import dataclasses

from fe_adapter.checks import MAX_CLIPS, check_choice, check_count
from fe_adapter.errors import InputError
from fe_adapter.models.inference import PRECISIONS
from fe_adapter.predict.result import check_smooth, check_unsure_below
from fe_adapter.predict.tables import STYLES, check_parquet

FORMATS = ("json", "csv", "png", "parquet")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What is looked at, and what is written of it.

    Args:
        window: seconds looked at at a time; None is as long as the clips of training, and the whole video where that
            is not known.
        step: seconds from one look to the next; None is half a window.
        batch_size: windows at a time, of whatever files.
        precision: of autocast: no, bf16, fp16, or auto, bf16 where a GPU has it.
        unsure_below: say 'unsure' where no class is as probable as this, in (0, 1].
        smooth: seconds over which the probabilities of a person's neighbouring windows are averaged.
        formats: files to write for each video: json, csv, png (a timeline), parquet (needs pyarrow).
        columns: names of the tables' columns, feat (as of py-feat) or openface.
        annotate: also write an .mp4 of each video with the answers drawn into it, its sound kept.

    Raises:
        InputError: a value is out of range.
    """

    window: float | None = None
    step: float | None = None
    batch_size: int = 8
    precision: str = "auto"
    unsure_below: float | None = None
    smooth: float | None = None
    formats: tuple[str, ...] = ("json", "csv", "png")
    columns: str = "feat"
    annotate: bool = False

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, 1, MAX_CLIPS)
        check_choice("precision", self.precision, ("auto", *PRECISIONS))
        check_choice("columns", self.columns, STYLES)
        check_unsure_below(self.unsure_below)
        check_smooth(self.smooth)
        for name in self.formats:
            check_choice("formats", name, FORMATS)
        if len(set(self.formats)) < len(self.formats) or "json" not in self.formats:
            raise InputError(f"formats={','.join(self.formats)!r} must name json, and none twice")
        if "parquet" in self.formats:
            check_parquet()
        for name, value in (("window", self.window), ("step", self.step)):
            if value is not None and not 0 < value < 1e9:
                raise InputError(f"{name}={value} is no number of seconds; windows and steps must be positive")
