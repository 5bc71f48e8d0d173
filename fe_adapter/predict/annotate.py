"""The video again, with what was said of it drawn into it: boxes, who it is, and how probable each class is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fe_adapter.data.container import opened, reformatter, upright
from fe_adapter.data.reading import frames_in_order
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write, printable
from fe_adapter.predict.result import Prediction, plain

MOST_CLASSES = 3  # named of one face, the most probable ones
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")  # by person
_ENCODERS = ("libx264", "mpeg4")  # the first one that this FFmpeg has


def write_annotated(prediction: Prediction, path: str | os.PathLike[str]) -> None:
    """Write the predicted video as MP4 with the answers in it, in a second pass over the file; its sound is kept.

    Sound that MP4 has is copied as it is; other sound is encoded as AAC. Frames keep their times.

    Raises:
        InputError: it was no file that was predicted, the file cannot be decoded any more, or not be written.
    """
    info = prediction.video
    if info is None:
        raise InputError(f"{prediction.path} was watched, and is no file to annotate")
    answers = _Answers(prediction)
    with atomic_write(Path(path)) as file:
        _write(file, info, answers)


class _Answers:
    """Draws what is said at every frame: the row whose middle is nearest in time, of everybody who is there."""

    def __init__(self, prediction: Prediction) -> None:
        from PIL import ImageFont

        self._prediction, self._tracks = prediction, prediction.seen.tracks
        info = prediction.video
        assert info is not None
        self._font = ImageFont.load_default(max(10, min(info.height, info.width) / 22))
        self._rows: dict[int | None, tuple[Any, list[int]]] = {}
        middle = np.array(prediction.windows).mean(1)
        faces = prediction.faces or (None,) * len(middle)
        for who in dict.fromkeys(None if face is None else face.id for face in faces):
            rows = [row for row, face in enumerate(faces) if (None if face is None else face.id) == who]
            self._rows[who] = middle[rows], rows

    def draw(self, image: np.ndarray, index: int, seconds: float) -> np.ndarray:
        """``(H, W, 3)`` uint8 with what is said of the frame of that number."""
        from PIL import Image, ImageDraw

        picture = Image.fromarray(image)
        pen = ImageDraw.Draw(picture)
        if self._tracks is None:
            row = self._nearest(None, seconds)
            self._write(pen, (4, 4, 0, 0), self._lines(row, ""), "black")
        else:
            for who, (x, y, width, height) in self._tracks.at(index).items():
                colour = _COLOURS[who % len(_COLOURS)]
                pen.rectangle((x, y, x + width, y + height), outline=colour, width=max(2, picture.height // 240))
                lines = self._lines(self._nearest(who, seconds), f"face {who}")
                self._write(pen, (x, y, width, height), lines, colour)
        return np.asarray(picture)

    def _nearest(self, who: int | None, seconds: float) -> int | None:
        if who not in self._rows:  # too short for a window
            return None
        middle, rows = self._rows[who]
        return rows[int(np.abs(middle - seconds).argmin())]

    def _lines(self, row: int | None, name: str) -> list[str]:
        if row is None:
            return [name]
        values = [value or 0.0 for value in plain(self._prediction.window_probabilities[row])]
        order = np.argsort(-np.array(values), kind="stable")[:MOST_CLASSES]
        label = str(self._prediction.record(row)["label"])
        shown = [f"{values[i]:.0%} {self._prediction.class_names[i]}" for i in order]
        is_class = label == self._prediction.class_names[order[0]]
        return [*([name] if name else []), *([] if is_class else [label]), *map(printable, shown)]

    def _write(self, pen: Any, box: tuple[float, ...], lines: Sequence[str], colour: str) -> None:
        """Text on a ground of its own, where there is room for it: below a box, above it, or beside it."""
        text = "\n".join(line[:60] for line in lines)
        *_, right, bottom = pen.multiline_textbbox((0, 0), text, font=self._font)
        x, y, w, h = box
        most = pen.im.size[0] - right - 4, pen.im.size[1] - bottom - 4
        places = ((x, y + h + 4), (x, y - bottom - 8), (x + w + 4, y), (x - right - 8, y))
        inside = [place for place in places if 0 <= place[0] <= most[0] and 0 <= place[1] <= most[1]]
        left, top = inside[0] if inside else (max(0, min(x, most[0])), max(0, min(y + h + 4, most[1])))
        pen.rectangle((left - 2, top - 2, left + right + 2, top + bottom + 2), fill=colour)
        pen.multiline_text((left, top), text, font=self._font, fill="white")


def _write(file: Any, info: VideoInfo, answers: _Answers) -> None:
    """The annotated video, into an open file."""
    import av

    with av.open(file, "w", format="mp4") as output:
        content = _content(info)
        time_base, source = next(content)
        pictures = _Pictures(output, info, time_base)
        sound = None if source is None else _Sound(output, source)  # streams come before any packet
        for index, item in content:
            if index is None and sound is not None:
                sound.add(item)
            elif index is not None:
                pictures.add(answers.draw(item, index, float(info.timestamps[index])), int(info.pts[index]))
        if sound is not None:
            sound.end()
        pictures.end()


def _content(info: VideoInfo) -> Iterator[Any]:
    """First the unit of time, and the stream of sound, if there is one; then, in the order of the file, pictures
    ``(H, W, 3)`` with their numbers, and packets of sound with None."""
    own_base = Fraction(info.time_base).limit_denominator(1_000_000)
    if info.files or info.packed:
        yield own_base, None
        for index, frame in frames_in_order(info, range(info.num_frames)):
            yield index, frame.permute(1, 2, 0).contiguous().numpy()
        return
    numbers = {int(pts): index for index, pts in enumerate(info.pts)}
    to_rgb, count = reformatter(), 0
    with opened(info.path) as (container, stream):
        stream.thread_type = "AUTO"
        sounds = container.streams.audio[:1]
        yield (own_base if info.is_numbered else stream.time_base), (sounds[0] if sounds else None)
        for packet in container.demux(stream, *sounds):
            if packet.stream.type == "audio":
                yield None, packet
                continue
            for frame in packet.decode():
                number = numbers.get(count if info.is_numbered else frame.pts)
                count += 1
                if number is not None:
                    image = upright(frame, stream, info.path, (info.height, info.width), to_rgb)
                    yield number, np.ascontiguousarray(image)


class _Pictures:
    """The video stream of the output."""

    def __init__(self, output: Any, info: VideoInfo, time_base: Fraction) -> None:
        import av

        codec = next(name for name in _ENCODERS if name in av.codecs_available)
        self._output, self._time_base = output, time_base
        rate = Fraction(1 / info.frame_seconds).limit_denominator(1001)
        self._stream = output.add_stream(codec, rate=rate)
        self._stream.height, self._stream.width = info.height + info.height % 2, info.width + info.width % 2  # of 4:2:0
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = time_base
        if codec == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}

    def add(self, image: np.ndarray, pts: int) -> None:
        import av

        odd = [
            (0, side - given)
            for side, given in zip((self._stream.height, self._stream.width), image.shape, strict=False)
        ]
        frame = av.VideoFrame.from_ndarray(np.pad(image, [*odd, (0, 0)], mode="edge"), format="rgb24")
        frame.pts, frame.time_base = pts, self._time_base
        self._output.mux(self._stream.encode(frame))

    def end(self) -> None:
        self._output.mux(self._stream.encode(None))


class _Sound:
    """The sound of the output: packets as they are, where MP4 has their codec, or else encoded anew."""

    def __init__(self, output: Any, source: Any) -> None:
        import av

        self._output: Any = output
        self._resampler: Any = None
        if source.codec_context.name in output.supported_codecs and not source.codec_context.name.startswith("pcm"):
            self._stream = output.add_stream_from_template(source)
            return
        rate = source.rate or 44_100
        self._stream = output.add_stream("aac", rate=rate)
        self._resampler = av.AudioResampler(format="fltp", layout=source.layout, rate=rate)

    def add(self, packet: Any) -> None:
        if self._resampler is not None:
            for frame in packet.decode():
                self._encode(frame)
        elif packet.dts is not None:  # none at the end of the file
            packet.stream = self._stream
            self._output.mux(packet)

    def end(self) -> None:
        if self._resampler is not None:
            self._encode(None)
            self._output.mux(self._stream.encode(None))

    def _encode(self, frame: Any) -> None:
        for resampled in self._resampler.resample(frame):
            self._output.mux(self._stream.encode(resampled))
