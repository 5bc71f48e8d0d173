"""What a prediction is, and its files: JSON, CSV and a timeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.transforms import EvalTransform
from fe_adapter.data.video import VideoInfo, probe, read_frames
from fe_adapter.files import new_figure, write_csv, write_figure, write_json


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class probabilities of one video.

    Args:
        path: the file.
        class_names: C names.
        windows: ``(start, end)`` in seconds of the parts that were looked at.
        window_probabilities: ``(n, C)``, one row a window.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    window_probabilities: Tensor

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
        """Probability of each class over time, above a strip of frames."""
        figure, axes = new_figure(8, 4)
        centres = [(start + end) / 2 for start, end in self.windows]
        for name, row in zip(self.class_names, self.window_probabilities.t().tolist(), strict=True):
            axes.plot(centres, row, marker="o", markersize=3, label=name)
        end = self.windows[-1][1]
        axes.set(xlim=(0, end), ylim=(-0.02, 1.02), xlabel="time, s", ylabel="probability", title=Path(self.path).name)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        strip = axes.inset_axes((0, -0.45, 1, 0.25))
        strip.imshow(_film_strip(probe(self.path)), aspect="auto", extent=(0, end, 0, 1))
        strip.set_axis_off()
        return figure


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


def _film_strip(info: VideoInfo, num_frames: int = 12) -> Any:
    """``(h, num_frames * w, 3)`` uint8 for matplotlib: frames from the whole video, side by side."""
    frames = EvalTransform((96, round(96 * info.width / info.height)))(
        read_frames(info, FrameSampler(num_frames)(info))
    )
    return rearrange(frames, "t c h w -> h (t w) c").numpy()
