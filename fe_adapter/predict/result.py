"""What a prediction is, and its files: JSON, tables and timelines."""

from __future__ import annotations

import dataclasses
import glob
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fe_adapter.data.faces import Face
from fe_adapter.data.live import is_live
from fe_adapter.data.reading import probe
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import write_figure, write_json
from fe_adapter.predict.seen import Seen
from fe_adapter.predict.tables import Record, class_columns, in_style, write_table
from fe_adapter.predict.timeline import draw_timeline

UNSURE = "unsure"  # in the place of a label
NO_FACE = "no face"  # likewise, where nobody is to be seen


def check_unsure_below(unsure_below: float | None) -> None:
    """Raise `InputError` unless it is a probability that some class may fall below, or None."""
    if unsure_below is not None and not 0 < unsure_below <= 1:
        raise InputError(f"unsure_below={unsure_below} is outside (0, 1]")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class probabilities of one video: n of them, one for each window and, where faces were looked for, each person.

    Args:
        path: the file, or the camera or address.
        class_names: C names.
        windows: ``(start, end)`` in seconds of the parts that were looked at.
        window_probabilities: ``(n, C)``; NaN where faces were looked for, and nobody is there.
        unsure_below: what is less probable than this, in (0, 1], has no label but "unsure"; None answers always.
        video: what `fe_adapter.data.probe` said of the file, which saves looking again.
        frames: the middle frame of each window, by its number in the video, from 0.
        timestamps: of those frames, in seconds.
        faces: the person's face in, or nearest to, each of those frames; None of whole frames, and where nobody is.
        seen: what was kept for timelines and annotated videos.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    window_probabilities: Tensor
    video: VideoInfo | None = dataclasses.field(default=None, repr=False, compare=False)
    unsure_below: float | None = None
    frames: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    timestamps: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    faces: tuple[Face | None, ...] = dataclasses.field(default=(), repr=False)
    seen: Seen = dataclasses.field(default_factory=Seen, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_unsure_below(self.unsure_below)

    @property
    def probabilities(self) -> Tensor:
        """``(C,)`` of the whole video: the mean over its windows, of all people in it; NaN where there is nobody."""
        return self.window_probabilities.nanmean(0)

    @property
    def label(self) -> str:
        """The most probable class of the whole video, or "unsure", or "no face"."""
        return self._label(self.probabilities)

    @property
    def people(self) -> tuple[int, ...]:
        """The ids of the people in it, ascending; none where faces were not looked for."""
        return tuple(sorted({face.id for face in self.faces if face is not None}))

    @property
    def looked_for_faces(self) -> bool:
        return bool(self.people) or bool(self.window_probabilities.isnan().any())

    def of(self, person: int) -> Prediction:
        """What is said of one person: a row for every window, NaN where that person is not there."""
        rows: dict[tuple[float, float], int | None] = {}
        for row, (window, face) in enumerate(zip(self.windows, self.faces, strict=True)):
            is_theirs = face is not None and face.id == person
            rows[window] = row if is_theirs else rows.get(window)
        nobody = torch.full_like(self.window_probabilities[0], torch.nan)
        first = {window: row for row, window in reversed(list(enumerate(self.windows)))}
        at = [first[window] if row is None else row for window, row in rows.items()]
        return dataclasses.replace(
            self,
            windows=tuple(rows),
            window_probabilities=torch.stack(
                [nobody if row is None else self.window_probabilities[row] for row in rows.values()]
            ),
            frames=tuple(self.frames[row] for row in at) if self.frames else (),
            timestamps=tuple(self.timestamps[row] for row in at) if self.timestamps else (),
            faces=tuple(None if row is None else self.faces[row] for row in rows.values()),
            seen=Seen({None: self.seen.strips[person]} if person in self.seen.strips else {}),
        )

    def smoothed(self, seconds: float) -> Prediction:
        """With each row the mean over those of the same person whose middle is within half of ``seconds``.

        Raises:
            InputError: ``seconds`` is negative or not finite.
        """
        check_smooth(seconds)
        rows = self.window_probabilities.clone()
        who = [None if face is None else face.id for face in self.faces] or [None] * len(rows)
        middle = np.array(self.windows).mean(1)
        for person in dict.fromkeys(who):
            theirs = np.array([w == person for w in who]) & ~rows.isnan().any(1).numpy()
            places = np.flatnonzero(theirs)
            at = middle[places]
            sums = torch.cat([rows.new_zeros(1, rows.shape[1]), self.window_probabilities[places]]).double().cumsum(0)
            first = np.searchsorted(at, at - seconds / 2 - 1e-6)
            last = np.searchsorted(at, at + seconds / 2 + 1e-6)
            rows[places] = ((sums[last] - sums[first]) / torch.from_numpy(last - first)[:, None]).to(rows.dtype)
        return dataclasses.replace(self, window_probabilities=rows)

    def records(self) -> list[Record]:
        """A dict for every row, under the names of the CSV file: what ``pandas.DataFrame`` takes as it is.

        A column says nothing where its value is None: the face of whole frames, all but the time where nobody is there.
        """
        return [self.record(row) for row in range(len(self.windows))]

    def record(self, row: int) -> Record:
        """One of `records`."""
        (start, end), values = self.windows[row], self.window_probabilities[row]
        face = self.faces[row] if self.faces else None
        x, y, width, height = (None,) * 4 if face is None else face.box
        is_there = not bool(values.isnan().any())
        return {
            "input": self.path,
            "frame": self.frames[row] if self.frames else None,
            "timestamp": self.timestamps[row] if self.timestamps else (start + end) / 2,
            "start": start,
            "end": end,
            "face_id": None if face is None else face.id,
            "FaceRectX": x,
            "FaceRectY": y,
            "FaceRectWidth": width,
            "FaceRectHeight": height,
            "FaceScore": None if face is None else face.score,
            "success": int(is_there),
            "label": self._label(values),
            **dict(zip(class_columns(self.class_names), plain(values), strict=True)),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        content: dict[str, Any] = {
            "path": self.path,
            "label": self.label,
            "probabilities": self._by_name(self.probabilities),
        }
        if self.looked_for_faces:
            content["people"] = [self._person(person) for person in self.people]
        content["windows"] = [self._window(row) for row in range(len(self.windows))]
        return content

    def save(
        self,
        stem: Path,
        formats: Sequence[str] = ("json", "csv", "png"),
        columns: str = "feat",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the files of a prediction, whole or not at all, the JSON file as the last one.

        Args:
            stem: of their names. ``stem.csv`` and ``stem.parquet`` have a line for every row, ``stem.png`` is a
                timeline; of people, ``stem.face3.png`` is that of number 3.
            formats: which of "json", "csv", "parquet" and "png".
            columns: names of the tables' columns: "feat" as in py-feat, or "openface" as in OpenFace.
            about: what else the JSON file says.

        Raises:
            InputError: a file cannot be written; Parquet or a picture needs a library that is not installed.
        """
        records = [in_style(record, columns) for record in self.records()]
        for kind in ("csv", "parquet"):
            if kind in formats:
                write_table(stem.with_name(f"{stem.name}.{kind}"), records)
        if "png" in formats:
            pictures = {f"{stem.name}.png": self} if not self.people else {}
            pictures |= {f"{stem.name}.face{person}.png": self.of(person) for person in self.people}
            _remove_pictures(stem, pictures)
            for name, prediction in pictures.items():
                write_figure(prediction.timeline(), stem.with_name(name))
        if "json" in formats:
            write_json(stem.with_name(f"{stem.name}.json"), self.as_dict() | dict(about or {}))

    def timeline(self) -> Any:
        """A matplotlib figure: probabilities over time, below a strip of frames."""
        strip = self.seen.strips.get(None)
        info = self.video or (None if strip is not None or is_live(self.path) else probe(self.path))
        rows = self.window_probabilities.double().cpu().numpy()
        name = Path(self.path).name
        faces = [face for face in self.faces if face is not None]
        title = f"{name}, face {faces[0].id}" if len({face.id for face in faces}) == 1 else name
        return draw_timeline(title, self.class_names, self.windows, rows, info, self.unsure_below, strip)

    def _label(self, row: Tensor) -> str:
        return label_of(row, self.class_names, self.unsure_below)

    def _by_name(self, row: Tensor) -> dict[str, float | None]:
        return dict(zip(self.class_names, plain(row), strict=True))

    def _window(self, row: int) -> dict[str, Any]:
        record, values = self.record(row), self.window_probabilities[row]
        content = {name: record[name] for name in ("start", "end", "frame", "timestamp", "label")}
        content["probabilities"] = self._by_name(values)
        if self.looked_for_faces:
            face = self.faces[row] if self.faces else None
            shown = None if face is None else {"id": face.id, "box": list(face.box), "score": face.score}
            content["face"] = shown
        return content

    def _person(self, person: int) -> dict[str, Any]:
        theirs = self.of(person)
        there = [window for window, face in zip(theirs.windows, theirs.faces, strict=True) if face is not None]
        return {
            "id": person,
            "label": theirs.label,
            "probabilities": theirs._by_name(theirs.probabilities),
            "windows": len(there),
            "start": there[0][0],
            "end": there[-1][1],
        }


def label_of(row: Tensor, class_names: Sequence[str], unsure_below: float | None) -> str:
    """What is said of probabilities ``(C,)``: a class, "unsure", or "no face" of NaN."""
    probability, place = row.max(-1)
    if probability.isnan():
        return NO_FACE
    return UNSURE if probability.item() < (unsure_below or 0) else class_names[int(place)]


def check_smooth(seconds: float | None) -> None:
    """Raise `InputError` unless it is a time over which to average, or None."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InputError(f"smooth={seconds} is no number of seconds")


def _remove_pictures(stem: Path, but: Collection[str]) -> None:
    """Remove the timelines of an earlier prediction, of people whom this one does not know."""
    if stem.with_name(f"{stem.name}.json").exists():
        for path in stem.parent.glob(f"{glob.escape(stem.name)}*.png"):
            if path.name not in but and re.fullmatch(rf"{re.escape(stem.name)}(\.face[0-9]+)?\.png", path.name):
                path.unlink()


def plain(row: Tensor) -> list[float | None]:
    """Numbers, or nothing in the place of NaN, which JSON does not know."""
    return [None if math.isnan(value) else value for value in row.tolist()]
