"""Who is who from frame to frame: boxes that overlap where a person was going are that person's."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fe_adapter.data.faces.boxes import overlap
from fe_adapter.data.faces.detectors import Detector, find_faces
from fe_adapter.data.faces.face import Face, FaceRecipe
from fe_adapter.errors import InputError

MAX_GAP = 1.0  # seconds unseen after which a person is gone
SLOWEST = 5.0  # seconds from frame to frame, beyond which it is another scene
START_SCORE, KEEP_SCORE = 0.7, 0.5  # of a face that is new, and of one that is followed already (ByteTrack's idea)
LEAST_OVERLAP = 0.2  # with where somebody is expected
PATIENCE = 0.25  # seconds that "largest" waits for its person before it looks at another one
SWITCH = 1.5  # times as large is who "largest" turns to
_SLOW, _FAST = 1.0, 6.0  # hertz: smoothing of a face at rest, and what a speed of one face a second adds
_RATE = 2.0  # hertz, of the speed itself


class FaceTracker:
    """The faces of one video or stream, frame by frame, in constant memory.

    A face that overlaps the box in which a person is expected, going on as fast as before, is that person's; the longer
    they were out of sight, the less it must. Out of sight for over ``max_gap`` seconds they are gone: who comes back
    later is somebody new, as is who comes back elsewhere. Nobody is recognized by their looks, so where a film cuts to
    another face in the same place, that keeps the number. Boxes are smoothed by a One-Euro filter (Casiez et al. 2012):
    at rest they do not tremble, and in motion they do not lag behind. All is by time, not by frames.

    "largest" stays with a person until another face is half as large again, or theirs is out of sight for a quarter of
    a second.

    Args:
        detector: as of `load_detector`.
        recipe: which faces, and how large frames are when faces are looked for.
        max_gap: seconds.

    Example:
        >>> recipe = FaceRecipe("all")
        >>> tracker = FaceTracker(load_detector(recipe.detector), recipe)
        >>> for seconds, frame in stream_frames("clip.mp4"):
        ...     crops = {face.id: crop_face(frame, face, recipe) for face in tracker.update(seconds, frame)}
    """

    def __init__(self, detector: Detector, recipe: FaceRecipe, *, max_gap: float = MAX_GAP) -> None:
        if not 0 <= max_gap < math.inf:
            raise InputError(f"max_gap={max_gap} is no number of seconds")
        self._detector, self._recipe, self._max_gap = detector, recipe, max_gap
        self._people: list[_Person] = []
        self._held: _Person | None = None  # whom "largest" looks at
        self._num_people, self._seconds = 0, -math.inf

    def update(self, seconds: float, frame: Tensor) -> list[Face]:
        """The faces in the next frame, the largest first; of people out of sight there is none.

        Args:
            seconds: of the frame; where time goes back, everybody is new.
            frame: uint8 ``(3, H, W)``, in RGB.

        Raises:
            InputError: it is no such frame; the detector fails, or gives what cannot be boxes.
        """
        if not math.isfinite(seconds):
            raise InputError(f"a frame at {seconds} seconds")
        if self._recipe.which == "none":
            return []
        boxes, scores = find_faces(self._detector, frame, self._recipe.detection_size, seconds)
        since, before, self._seconds = seconds - self._max_gap - 1e-6, self._seconds, seconds
        if seconds < before:
            self._people, self._held = [], None
        if seconds - before < SLOWEST:  # of few frames a second, too, whoever was in the one before is still there
            since = min(since, before)
        self._people = [person for person in self._people if person.seen >= since]
        known = self._recognized(boxes, scores)
        seen = []
        for i, (box, score) in enumerate(zip(boxes, scores.tolist(), strict=True)):
            if i in known:
                known[i].move(seconds, box, score)
                seen.append(known[i])
            elif score >= START_SCORE:
                seen.append(_Person(self._num_people, seconds, box, score))
                self._people.append(seen[-1])
                self._num_people += 1
        seen.sort(key=lambda person: -person.area)
        return [person.face() for person in (self._largest(seen) if self._recipe.which == "largest" else seen)]

    def _recognized(self, boxes: np.ndarray, scores: np.ndarray) -> dict[int, _Person]:
        """Whose each of ``boxes`` is, where it is somebody's: the pairs that overlap most first."""
        if not len(boxes) or not self._people:
            return {}
        expected = np.stack([person.expected(self._seconds) for person in self._people])
        slack = np.array([1 + min(1.0, self._seconds - person.seen) for person in self._people])[:, None, None]
        scale = np.concatenate([np.ones_like(slack), np.ones_like(slack), slack, slack], -1)  # of sizes, not of centres
        shares = overlap(expected[:, None] * scale, boxes * scale)  # (people, boxes)
        shares[:, scores < KEEP_SCORE] = 0
        found: dict[int, _Person] = {}
        taken: set[int] = set()
        for place in np.argsort(-shares, axis=None, kind="stable").tolist():
            who, what = divmod(place, len(boxes))
            if shares[who, what] < LEAST_OVERLAP:
                break
            if who not in taken and what not in found:
                taken.add(who)
                found[what] = self._people[who]
        return found

    def _largest(self, seen: list[_Person]) -> list[_Person]:
        largest, held = (seen[0] if seen else None), self._held
        is_lost = held is None or (held not in seen and self._seconds - held.seen > PATIENCE)
        if is_lost or (held in seen and largest is not None and held is not None and largest.area > SWITCH * held.area):
            self._held = largest
        return [self._held] if self._held is not None and self._held in seen else []


class _Person:
    """Where somebody was seen last, how fast they move, and where they are, smoothed."""

    def __init__(self, number: int, seconds: float, box: np.ndarray, score: float) -> None:
        self.number, self.seen, self.score = number, seconds, score
        self._last = self._smooth = _logarithmic(box)
        self._speed = np.zeros(4)  # in faces a second; of the size, in natural logarithms

    def move(self, seconds: float, box: np.ndarray, score: float) -> None:
        elapsed, now = seconds - self.seen, _logarithmic(box)
        if elapsed > 0:
            rate = (now - self._last) / self._unit() / elapsed
            self._speed = self._speed + _share(_RATE, elapsed) * (rate - self._speed)
            share = _share(_SLOW + _FAST * np.abs(self._speed), elapsed)
            self._smooth = self._smooth + share * (now - self._smooth)
        self._last, self.seen, self.score = now, seconds, score

    def expected(self, seconds: float) -> np.ndarray:
        """The box ``(4,)``, centre and size, had they gone on as they did, for a second; their size is what it was."""
        centre = self._last[:2] + self._speed[:2] * self._unit()[:2] * min(1.0, seconds - self.seen)
        return np.concatenate([centre, np.exp(self._last[2:])])

    @property
    def area(self) -> float:
        return float(np.exp(self._smooth[2:].sum()))

    def face(self) -> Face:
        (x, y), (w, h) = self._smooth[:2].tolist(), np.exp(self._smooth[2:]).tolist()
        return Face(self.number, (x - w / 2, y - h / 2, w, h), self.score)

    def _unit(self) -> np.ndarray:
        """What a speed of 1 is a second of, in `_last`'s terms."""
        side = math.exp(self._last[2:].max())
        return np.array([side, side, 1, 1])


def _logarithmic(box: np.ndarray) -> np.ndarray:
    """Centre and logarithms of the sides."""
    return np.concatenate([box[:2], np.log(box[2:])])


def _share(hertz: float | np.ndarray, elapsed: float) -> np.ndarray:
    """How far a low-pass filter of that cutoff follows in so many seconds."""
    return 1 / (1 + 1 / (2 * np.pi * np.asarray(hertz) * elapsed))
