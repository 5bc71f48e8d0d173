"""What a prediction is, and its files: JSON, CSV and a timeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fe_adapter.data.reading import probe
from fe_adapter.data.video import VideoInfo
from fe_adapter.files import write_csv, write_figure, write_json
from fe_adapter.predict.timeline import draw_timeline


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class probabilities of one video.

    Args:
        path: the file.
        class_names: C names.
        windows: ``(start, end)`` in seconds of the parts that were looked at.
        window_probabilities: ``(n, C)``, one row a window.
        video: what `fe_adapter.data.probe` said of the file, which saves looking again.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    window_probabilities: Tensor
    video: VideoInfo | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def probabilities(self) -> Tensor:
        """``(C,)`` of the whole video: the mean over its windows."""
        return self.window_probabilities.mean(0)

    @property
    def label(self) -> str:
        """The most probable class of the whole video."""
        return self.class_names[int(self.probabilities.argmax())]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "path": self.path,
            "label": self.label,
            "probabilities": self._by_name(self.probabilities),
            "windows": [
                {"start": start, "end": end, "probabilities": self._by_name(row)}
                for (start, end), row in zip(self.windows, self.window_probabilities, strict=True)
            ],
        }

    def save(self, stem: Path) -> None:
        """Write ``stem.json``, ``stem.csv`` (a line for every window) and ``stem.png``, a timeline."""
        write_json(stem.with_name(f"{stem.name}.json"), self.as_dict())
        rows: list[list[Any]] = [["start", "end", *self.class_names]]
        for (start, end), row in zip(self.windows, self.window_probabilities.tolist(), strict=True):
            rows.append([f"{start:.3f}", f"{end:.3f}", *(f"{p:.6f}" for p in row)])
        write_csv(stem.with_name(f"{stem.name}.csv"), rows)
        write_figure(self._timeline(), stem.with_name(f"{stem.name}.png"))

    def _by_name(self, row: Tensor) -> dict[str, float]:
        return dict(zip(self.class_names, row.tolist(), strict=True))

    def _timeline(self) -> Any:
        """Probabilities over time, below a strip of frames."""
        info = self.video or probe(self.path)
        rows = self.window_probabilities.double().cpu().numpy()
        return draw_timeline(Path(self.path).name, self.class_names, self.windows, rows, info)


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
