"""What a prediction is, and its files: JSON, CSV and a timeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fe_adapter.data.reading import probe
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import write_csv, write_figure, write_json
from fe_adapter.predict.timeline import draw_timeline

UNSURE = "unsure"  # in the place of a label


def check_unsure_below(unsure_below: float | None) -> None:
    """Raise `InputError` unless it is a probability that some class may fall below, or None."""
    if unsure_below is not None and not 0 < unsure_below <= 1:
        raise InputError(f"unsure_below={unsure_below} is outside (0, 1]")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class probabilities of one video.

    Args:
        path: the file.
        class_names: C names.
        windows: ``(start, end)`` in seconds of the parts that were looked at.
        window_probabilities: ``(n, C)``, one row a window.
        unsure_below: what is less probable than this, in (0, 1], has no label but "unsure"; None answers always.
        video: what `fe_adapter.data.probe` said of the file, which saves looking again.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    window_probabilities: Tensor
    video: VideoInfo | None = dataclasses.field(default=None, repr=False, compare=False)
    unsure_below: float | None = None

    def __post_init__(self) -> None:
        check_unsure_below(self.unsure_below)

    @property
    def probabilities(self) -> Tensor:
        """``(C,)`` of the whole video: the mean over its windows."""
        return self.window_probabilities.mean(0)

    @property
    def label(self) -> str:
        """The most probable class of the whole video, or "unsure"."""
        return self._label(self.probabilities)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "path": self.path,
            "label": self.label,
            "probabilities": self._by_name(self.probabilities),
            "windows": [
                {"start": start, "end": end, "label": self._label(row), "probabilities": self._by_name(row)}
                for (start, end), row in zip(self.windows, self.window_probabilities, strict=True)
            ],
        }

    def save(self, stem: Path) -> None:
        """Write ``stem.json``, ``stem.csv`` (a line for every window) and ``stem.png``, a timeline."""
        write_json(stem.with_name(f"{stem.name}.json"), self.as_dict())
        rows: list[list[Any]] = [["start", "end", "label", *self.class_names]]
        for (start, end), row in zip(self.windows, self.window_probabilities, strict=True):
            rows.append([f"{start:.3f}", f"{end:.3f}", self._label(row), *(f"{p:.6f}" for p in row.tolist())])
        write_csv(stem.with_name(f"{stem.name}.csv"), rows)
        write_figure(self._timeline(), stem.with_name(f"{stem.name}.png"))

    def _label(self, row: Tensor) -> str:
        probability, place = row.max(-1)
        is_unsure = self.unsure_below is not None and probability.item() < self.unsure_below
        return UNSURE if is_unsure else self.class_names[int(place)]

    def _by_name(self, row: Tensor) -> dict[str, float]:
        return dict(zip(self.class_names, row.tolist(), strict=True))

    def _timeline(self) -> Any:
        """Probabilities over time, below a strip of frames."""
        info = self.video or probe(self.path)
        rows = self.window_probabilities.double().cpu().numpy()
        return draw_timeline(Path(self.path).name, self.class_names, self.windows, rows, info, self.unsure_below)


def output_stems(paths: Sequence[str], out: Path) -> list[Path]:
    """Where to write the results of each file: its own name in ``out``, numbered where two files share one."""
    stems: dict[Path, None] = {}
    for path in paths:
        stem = name = out / Path(path).stem
        count = 1
        while stem in stems:
            count += 1
            stem = name.with_name(f"{name.name}-{count}")
        stems[stem] = None
    return list(stems)
