"""Which frames of a video make a clip, by time: a variable frame rate is sampled evenly all the same."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np

from fe_adapter.checks import MAX_FRAMES, check_choice, check_count
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError

MAX_WINDOWS = 100_000  # of one video
SAMPLINGS = ("uniform", "stride", "dense")


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that is a function of ``parts`` alone, such as (seed, epoch, index)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclasses.dataclass(frozen=True)
class FrameSampler:
    """Chooses ``num_frames`` frames of a video.

    - "uniform": one frame of each of T equal segments of the video, a random one in training, else the middle.
    - "stride": every ``stride``-th frame at the video's own rate, from a random place in training, else the middle
      part; a video that is too short repeats its last frame.
    - "dense": T frames in a row, "stride" with a stride of 1.

    Args:
        num_frames: T.
        sampling: one of the above.
        stride: frames from one to the next, for "stride".

    Raises:
        InputError: a value is out of range.
    """

    num_frames: int
    sampling: str = "uniform"
    stride: int = 4

    def __post_init__(self) -> None:
        check_count("num_frames", self.num_frames, 1, MAX_FRAMES)
        check_count("stride", self.stride, 1, MAX_FRAMES)
        check_choice("sampling", self.sampling, SAMPLINGS)

    def __call__(
        self,
        info: VideoInfo,
        random: np.random.Generator | None = None,
        window: tuple[float, float] | None = None,
        view: tuple[int, int] = (0, 1),
    ) -> list[int]:
        """T frame indices, ascending.

        Args:
            info: the video.
            random: source of chance, for training; None always takes the same frames.
            window: part of the video ``(start, end)`` in seconds; None is all of it.
            view: without chance, ``(k, K)`` is the k-th, from 0, of K different clips of the video: of frames in
                between one another's ("uniform"), or of starts from its first to its last.
        """
        start, end = (0.0, info.duration) if window is None else window
        T = self.num_frames
        if self.sampling == "uniform":
            offsets = np.full(T, (view[0] + 0.5) / view[1]) if random is None else random.random(T)
            times: np.ndarray = start + (np.arange(T) + offsets) * (end - start) / T
        else:
            step = self._step(info)
            slack = max(0.0, end - start - (T - 1) * step - info.frame_seconds)
            share = 0.5 if view[1] == 1 else view[0] / (view[1] - 1)
            # at random anywhere in a frame, so that the last start is as likely as the others
            first = start + (slack * share if random is None else (slack + info.frame_seconds) * random.random())
            times = first + np.arange(T) * step
        # the frame on show at each time; a hair later, so that rounding does not take the one before
        shown = np.searchsorted(info.timestamps, times + 1e-6, side="right") - 1
        last = max(0, np.searchsorted(info.timestamps, end - 1e-6, side="left") - 1)
        return np.clip(shown, 0, last).tolist()

    def seconds(self, info: VideoInfo, window: tuple[float, float] | None = None) -> float:
        """The time a clip spans in a video, or in a part of it, in seconds."""
        whole = info.duration if window is None else window[1] - window[0]
        return whole if self.sampling == "uniform" else self.num_frames * self._step(info)

    def _step(self, info: VideoInfo) -> float:
        return info.frame_seconds * (self.stride if self.sampling == "stride" else 1)


def sliding_windows(duration: float, length: float, step: float) -> list[tuple[float, float]]:
    """``(start, end)`` in seconds of windows that cover a video, the last one ending where it ends.

    A video not longer than ``length`` is one window.

    Raises:
        InputError: ``length`` or ``step`` is not positive.
    """
    if not (0 < length < math.inf and 0 < step < math.inf):
        raise InputError(f"windows of {length} s every {step} s: both must be positive")
    if (duration - length) / step > MAX_WINDOWS:
        raise InputError(
            f"windows of {length} s every {step} s of {duration:.1f} s are over {MAX_WINDOWS}; take a longer step"
        )
    if duration <= length:
        return [(0.0, duration)]
    count = int(np.ceil((duration - length) / step - 1e-9))
    return [(i * step, i * step + length) for i in range(count)] + [(duration - length, duration)]
