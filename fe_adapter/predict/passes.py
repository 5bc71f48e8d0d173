"""One pass over videos: frames are decoded once, in order, by a thread ahead of the model, and windows share them.

What is read is a sequence of `Look`s: a window of the whole frame, or of one person in it. A frame that several windows
want is one `Part`, which is scaled once and gone from memory with the last look that holds it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fe_adapter.data.faces import Detector, Face, FaceRecipe, FaceTracker, crop_face, load_detector
from fe_adapter.data.reading import frames_in_order
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.transforms import Edit, EvalTransform, compact, finish
from fe_adapter.data.video import VideoInfo
from fe_adapter.models.inference import OnItsWay, classifying, finite
from fe_adapter.predict.seen import FACE_HEIGHT, MOST_OF_FACE, FilmStrip, Seen

Key = TypeVar("Key")


class Part:
    """One frame, or a face in one, cut out for a model."""

    def __init__(self, frame: Tensor, transform: EvalTransform) -> None:
        part, self.edit = transform.cut(frame[None])
        self.cut = compact(part, self.edit)  # (1, 3, h, w) uint8
        self.ready: Tensor | None = None  # (3, height, width) on the model's device, once it was wanted


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """A window of a video, and in it the whole frame or one person.

    Args:
        start: seconds.
        end: likewise.
        frame: the middle one of its frames, by its number in the video, from 0.
        timestamp: of that frame, in seconds.
        face: the person's face in that frame, or the one nearest to it; None of whole frames.
        parts: what the model gets to see, one for each of its frames; none where nobody is in the window.
    """

    start: float
    end: float
    frame: int
    timestamp: float
    face: Face | None = None
    parts: tuple[Part, ...] = ()


class Faces:
    """Finds, follows and cuts out people, as they were for training.

    Args:
        recipe: not "none".
        detector: None is the recipe's.

    Raises:
        InputError: as `load_detector`.
    """

    def __init__(self, recipe: FaceRecipe, detector: Detector | None = None) -> None:
        self.recipe = recipe
        self._detector = load_detector(recipe.detector if detector is None else detector)

    def tracker(self) -> FaceTracker:
        """One for another video."""
        return FaceTracker(self._detector, self.recipe)


class Shared:
    """The parts of frames that pending windows want, the looks that are made of them, and what is kept for pictures.

    Args:
        transform: of every part.
        faces: who is looked at; None looks at whole frames.
        seen: filled with film strips and, if it has some, tracks.
    """

    def __init__(self, transform: EvalTransform, faces: Faces | None, seen: Seen) -> None:
        self._transform, self._faces, self._seen = transform, faces, seen
        self._tracker = None if faces is None else faces.tracker()
        self._kept: dict[int, tuple[float, dict[int | None, tuple[Face | None, Part]]]] = {}  # by number of the frame

    def find(self, index: int, seconds: float, frame: Tensor) -> list[Face] | None:
        """The people in the next frame, none left out; None where whole frames are looked at."""
        if self._tracker is None:
            return None
        found = self._tracker.update(seconds, frame)
        if self._seen.tracks is not None:
            self._seen.tracks.add(index, found)
        return found

    def add(self, index: int, seconds: float, frame: Tensor, found: list[Face] | None) -> None:
        """Keep what is to be looked at in a frame, with what `find` has found there."""
        if index in self._kept:
            return
        crops: dict[int | None, tuple[Face | None, Tensor]] = {None: (None, frame)}
        if found is not None and self._faces is not None:
            crops = {face.id: (face, crop_face(frame, face, self._faces.recipe)) for face in found}
        self._kept[index] = seconds, {who: (face, Part(crop, self._transform)) for who, (face, crop) in crops.items()}
        for who, (_, crop) in crops.items():
            if who not in self._seen.strips:
                self._seen.strips[who] = FilmStrip() if who is None else FilmStrip(MOST_OF_FACE, FACE_HEIGHT)
            self._seen.strips[who].add(seconds, crop)

    def forget_before(self, index: int) -> None:
        """Let go of frames that no window wants any more."""
        for old in [kept for kept in self._kept if kept < index]:
            del self._kept[old]

    def looks(self, start: float, end: float, indices: Sequence[int]) -> Iterator[Look]:
        """What there is in a window whose frames are ``indices``, ascending: a look for every person.

        A person counts who is seen in half of the frames, of the "largest" ones the one seen in most of them; in the
        place of a frame in which they are not seen there is the nearest one in which they are.
        """
        middle = indices[len(indices) // 2]
        timestamp = self._kept[middle][0]
        count = Counter(who for index in indices for who in self._kept[index][1])
        people = [who for who in count if 2 * count[who] >= len(indices)]
        if self._faces is not None and self._faces.recipe.which == "largest":
            people = [max(people, key=count.__getitem__)] if people else []
        for who in people:
            places = np.flatnonzero([who in self._kept[index][1] for index in indices])
            nearest = [indices[places[np.abs(places - i).argmin()]] for i in range(len(indices))]
            seen = [self._kept[index][1][who] for index in nearest]
            yield Look(start, end, middle, timestamp, seen[len(seen) // 2][0], tuple(part for _, part in seen))
        if not people:
            yield Look(start, end, middle, timestamp)


def looks_of(
    info: VideoInfo,
    windows: Sequence[tuple[float, float]],
    num_frames: int,
    transform: EvalTransform,
    faces: Faces | None = None,
    seen: Seen | None = None,
) -> Iterator[Look]:
    """The looks of a video, window by window, in one pass over it; people are followed through every frame.

    Raises:
        InputError: a frame that is promised cannot be decoded, or a face detector fails.
    """
    sampler, shared, done = FrameSampler(num_frames), Shared(transform, faces, seen or Seen()), 0
    places = np.array([sampler(info, window=window) for window in windows])  # (n, T)
    wanted = dict.fromkeys(np.unique(places).tolist())
    read = list(wanted) if faces is None else range(info.num_frames)
    for index, frame in frames_in_order(info, read):
        seconds = float(info.timestamps[index])
        found = shared.find(index, seconds, frame)
        if index not in wanted:
            continue
        shared.add(index, seconds, frame, found)
        while done < len(windows) and places[done, -1] <= index:
            yield from shared.looks(*windows[done], places[done].tolist())
            done += 1
            shared.forget_before(places[done, 0] if done < len(windows) else info.num_frames)


def looks_of_live(
    frames: Iterable[tuple[float, Tensor]],
    length: float,
    step: float,
    num_frames: int,
    transform: EvalTransform,
    faces: Faces | None = None,
    seen: Seen | None = None,
) -> Iterator[Look | None]:
    """The looks of a camera or an address, window by window, as soon as all frames of one have been.

    A window gets the frames that are on show at its times, as those of a file do. When the frames end, a window that is
    at least half over ends with them, and so does the first one; its last frame then stays on show.

    Args:
        frames: seconds since the first one, and the frame; each is asked for once the one before has been looked at.
        length: of a window, in seconds.
        step: seconds from one window to the next.
        num_frames: of a window.
        transform: of every part.
        faces: who is looked at; None looks at whole frames.
        seen: as of `Shared`.

    Yields:
        The looks of a window, and None after them: nothing more is there yet.
    """
    shared, pending = Shared(transform, faces, seen or Seen()), deque([_Pending(0.0, length, num_frames)])
    on_show: tuple[int, float, Tensor, list[Face] | None] | None = None
    nothing_yet = True
    for number, (seconds, frame) in enumerate(frames):
        if on_show is not None:
            while pending[-1].start + step < seconds:
                pending.append(_Pending(pending[-1].start + step, length, num_frames))
            for window in pending:
                if window.take(on_show[0], seconds):
                    shared.add(*on_show)
            while pending and pending[0].is_whole:
                window, nothing_yet = pending.popleft(), False
                yield from shared.looks(window.start, window.start + length, window.indices)
                yield None
                if not pending:
                    pending.append(_Pending(window.start + step, length, num_frames))
            shared.forget_before(next((w.indices[0] for w in pending if w.indices), number))
        on_show = number, seconds, frame, shared.find(number, seconds, frame)
    if on_show is None:
        return
    shared.add(*on_show)
    for window in pending:
        if nothing_yet or 2 * len(window.indices) >= num_frames:
            window.take(on_show[0], math.inf)
            nothing_yet = False
            yield from shared.looks(window.start, min(on_show[1], window.start + length), window.indices)


class _Pending:
    """A window some of whose frames are still to come."""

    def __init__(self, start: float, length: float, num_frames: int) -> None:
        self.start = start
        self._times = start + (np.arange(num_frames) + 0.5) * length / num_frames  # as `FrameSampler` takes them
        self.indices: list[int] = []  # of frames that have come

    @property
    def is_whole(self) -> bool:
        return len(self.indices) == len(self._times)

    def take(self, index: int, until: float) -> bool:
        """Take a frame for every time at which it is on show; whether there is one."""
        count = int(np.searchsorted(self._times + 1e-6, until)) - len(self.indices)
        self.indices += [index] * count
        return count > 0


def answers(
    model: Any,
    items: Iterable[tuple[Key, Any]],
    batch_size: int,
    precision: str = "auto",
    at_once: bool = False,
) -> Iterator[tuple[Key, Any, Tensor | None]]:
    """``items`` again, in their order; a `Look` that has parts comes with its class probabilities ``(C,)``.

    Args:
        model: a `VideoClassifier`, or one that is compiled or wrapped.
        items: pairs of whatever the look belongs to, and the look; or anything else, which is passed on in its turn.
        batch_size: looks at a time, of whatever they are.
        precision: as of `fe_adapter.models.inference.classify`.
        at_once: answers to all that is there as soon as a None says that more is yet to come, and not while the next
            batch is under way.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    run, device = classifying(model, precision), next(model.parameters()).device
    before: tuple[list[tuple[Key, Any]], OnItsWay | None] | None = None
    for batch in _batches(items, batch_size, at_once):
        clips = [item.parts for _, item in batch if isinstance(item, Look) and item.parts]
        rows = run(model, _clips(clips, device)) if clips else None
        if before is not None:
            yield from _answered(*before)
        before = batch, rows
        if at_once:
            yield from _answered(*before)
            before = None
    if before is not None:
        yield from _answered(*before)


def _answered(batch: list[tuple[Key, Any]], rows: OnItsWay | None) -> Iterator[tuple[Key, Any, Tensor | None]]:
    left = iter(() if rows is None else finite(rows.read()))
    for key, item in batch:
        yield key, item, next(left) if isinstance(item, Look) and item.parts else None


def _batches(items: Iterable[Any], batch_size: int, at_once: bool) -> Iterator[list[Any]]:
    """As many looks each, fewer before a None ``at_once``; what is no look goes with the next one."""
    batch: list[Any] = []
    size = 0
    for item in items:
        batch.append(item)
        size += isinstance(item[1], Look)
        if size == batch_size or (at_once and item[1] is None):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _clips(looks: Sequence[tuple[Part, ...]], device: torch.device) -> Tensor:
    """``(B, T, 3, height, width)`` on ``device``; what no earlier batch had is scaled, all of one size at a time."""
    fresh: dict[tuple[Any, Edit], list[Part]] = {}
    for part in dict.fromkeys(part for parts in looks for part in parts):
        if part.ready is None:
            fresh.setdefault((part.cut.shape, part.edit), []).append(part)
    for (_, edit), parts in fresh.items():
        cuts = torch.cat([part.cut for part in parts])
        if device.type == "cuda":
            cuts = cuts.pin_memory().to(device, non_blocking=True)
        for part, image in zip(parts, finish(cuts, edit).to(device), strict=True):
            part.ready, part.cut = image, torch.empty(0)
    return torch.stack([torch.stack([part.ready for part in parts if part.ready is not None]) for parts in looks])
