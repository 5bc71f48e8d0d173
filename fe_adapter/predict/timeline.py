"""The picture of a prediction: probabilities over time, below a film strip of the video.

Places and sizes are in inches and the same for every video, so that pictures can be laid side by side.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from fe_adapter.data.reading import read_frames
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.video import VideoInfo
from fe_adapter.files import any_script, new_figure, printable, use_any_font
from fe_adapter.predict.seen import FilmStrip

WIDTH, LEFT, AXES_WIDTH, AXES_HEIGHT = 9.6, 0.7, 6.6, 2.6
BELOW, ABOVE, GAP = 0.55, 0.4, 0.06  # room for the time axis, for the title, between strip and curves
LEGEND_TEXT = 1.65  # widest class name
STRIP_HEIGHT, HIGHEST_STRIP = 0.75, 1.5  # as wished for, and of portraits
MAX_FRAMES = 12
MAX_COLUMNS = 330  # over two of the picture's pixels each
MAX_NAMED = 10  # classes; what is left of them is one grey area
PIXELS_PER_INCH = 120
LONG = 120  # seconds from which on time is told in minutes

Shown: TypeAlias = list[tuple[str, Any]]  # what the legend says, and of which of matplotlib's artists


def draw_timeline(
    title: str,
    class_names: tuple[str, ...],
    windows: tuple[tuple[float, float], ...],
    rows: Any,
    info: VideoInfo | None,
    unsure_below: float | None = None,
    pictures: FilmStrip | None = None,
) -> Any:
    """A matplotlib figure of the probabilities ``rows``, ``(n, C)``, in the ``windows`` of a video.

    Up to two classes are one curve, more are areas that add up to 1. A window is a step, from half way to the one
    before to half way to the next; of more than there is room for, neighbours share a column. Where no class is as
    probable as ``unsure_below`` the picture is pale; where rows are NaN nobody is there, and nothing is drawn.

    The film strip is of ``pictures``, or else of frames read from the video, of which ``info`` is known; there is none
    of a camera that showed nobody.
    """
    source: FilmStrip | VideoInfo | None = pictures or info
    frames, strip_height = _strip_size(source)
    height = BELOW + AXES_HEIGHT + GAP + strip_height + ABOVE
    figure, axes = new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    axes.set_position((LEFT / WIDTH, BELOW / height, AXES_WIDTH / WIDTH, AXES_HEIGHT / height))
    end = windows[-1][1]
    edges = _edges(windows)
    if source is not None:
        bottom = BELOW + AXES_HEIGHT + GAP
        strip = figure.add_axes((LEFT / WIDTH, bottom / height, AXES_WIDTH / WIDTH, strip_height / height))
        strip.set_axis_off()
        middles = [end * (i + 0.5) / frames for i in range(frames)]
        is_there = ~np.isnan(rows[:, 0])[np.clip(np.searchsorted(edges, middles) - 1, 0, len(rows) - 1)]
        strip.imshow(_film_strip(source, middles, is_there, strip_height), aspect="auto", extent=(0, end, 0, 1))
        strip.vlines([end * i / frames for i in range(1, frames)], 0, 1, color="white", linewidth=1)
    name = _shortened(figure, title, WIDTH - 2 * LEFT, 11)
    figure.text(LEFT / WIDTH, 1 - ABOVE / 2 / height, name, size=11, va="center", parse_math=False)

    starts = _column_starts(len(windows))
    per_column = np.diff([*starts, len(windows)])
    edges = edges[[*starts, -1]]
    somebody = ~np.isnan(rows[:, 0])
    seen = np.add.reduceat(somebody.astype(float), starts)
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is nobody
        means = np.add.reduceat(np.nan_to_num(rows), starts) / seen[:, None]
        overall = np.nan_to_num(rows).sum(0) / somebody.sum()
    if len(class_names) <= 2:
        low, high = np.fmin.reduceat(rows[:, 0], starts), np.fmax.reduceat(rows[:, 0], starts)
        band = (low, high) if per_column.max() > 1 else None
        shown = _draw_curve(axes, class_names, edges, means[:, 0], band, overall)
    else:
        shown = _draw_areas(axes, class_names, edges, means, overall)
    if not somebody.any():
        shown = []
    if unsure_below is not None and (means.max(1) < unsure_below).any():
        shown = [*shown, _draw_unsure(axes, edges, means.max(1) < unsure_below)]
    if not somebody.all():
        shown = [*shown, _draw_nobody(axes, edges, seen == 0, (~somebody).mean())]
    together = f"  (each column: the mean of up to {per_column.max()} windows)" if per_column.max() > 1 else ""
    axes.set(xlim=(0, end), ylim=(-0.02, 1.02) if len(class_names) <= 2 else (0, 1), ylabel="probability")
    _label_time(axes, end, together)
    labels = [_shortened(figure, label, LEGEND_TEXT, 9) for label, _ in shown]
    handles = [handle for _, handle in shown]
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9, handlelength=1.2
    )
    return figure


def _draw_curve(
    axes: Any, names: tuple[str, ...], edges: Any, values: Any, band: tuple[Any, Any] | None, overall: Any
) -> Shown:
    """The first class; a second one is its mirror, and no second curve."""
    from matplotlib.patches import Patch

    shown = [(f"{overall[0]:.0%} {names[0]}", axes.stairs(values, edges, baseline=None, color="C0", linewidth=1.6))]
    if band is not None:
        area = axes.stairs(band[1], edges, baseline=band[0], fill=True, color="C0", alpha=0.3)
        shown.append(("lowest to highest", area))
    if len(names) == 2:
        shown.append((f"{overall[1]:.0%} (1 − it) {names[1]}", Patch(visible=False)))
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    return shown


def _draw_areas(axes: Any, names: tuple[str, ...], edges: Any, values: Any, overall: Any) -> Shown:
    """An area for each class, the most probable one lowest, where its height is easiest to read."""
    order = np.argsort(-overall, kind="stable")
    named = order if len(names) <= MAX_NAMED + 1 else order[:MAX_NAMED]
    colours = _colours()
    base, shown = np.zeros(len(values)), []
    for rank, i in enumerate(named):
        # the colour is the class's own in every video, as long as there are enough
        colour = colours[i if len(names) <= len(colours) else rank]
        area = axes.stairs(base + values[:, i], edges, baseline=base, fill=True, color=colour)
        shown.append((f"{overall[i]:.0%} {names[i]}", area))
        base = base + values[:, i]
    if len(named) < len(names):
        rest = order[len(named) :]
        area = axes.stairs(base + values[:, rest].sum(1), edges, baseline=base, fill=True, color="0.85")
        shown.append((f"{overall[rest].sum():.0%} {len(rest)} other classes", area))
    return shown[::-1]  # from top to bottom, as in the picture


def _draw_unsure(axes: Any, edges: Any, is_unsure: Any) -> tuple[str, Any]:
    """A veil over the columns without an answer."""
    from matplotlib.patches import Patch

    veil: dict[str, Any] = {"facecolor": "white", "alpha": 0.7, "edgecolor": "0.5", "hatch": "////", "linewidth": 0}
    for i in np.flatnonzero(is_unsure):
        axes.axvspan(edges[i], edges[i + 1], **veil)
    return f"{is_unsure.mean():.0%} unsure", Patch(**veil)


def _draw_nobody(axes: Any, edges: Any, is_empty: Any, share: float) -> tuple[str, Any]:
    """Dots in the columns in which there is nobody; ``share`` is that of the windows."""
    from matplotlib.patches import Patch

    dots: dict[str, Any] = {"facecolor": "0.95", "edgecolor": "0.7", "hatch": "..", "linewidth": 0}
    for i in np.flatnonzero(is_empty):
        axes.axvspan(edges[i], edges[i + 1], **dots)
    return f"{share:.0%} no face", Patch(**dots)


def _colours() -> list[Any]:
    """18 colours that differ, strong ones first; greys are for what has no name."""
    from matplotlib import colormaps

    pairs = [colormaps["tab20"](i) for i in range(20)]
    return [*pairs[0:14:2], *pairs[16::2], *pairs[1:14:2], *pairs[17::2]]


def _edges(windows: tuple[tuple[float, float], ...]) -> Any:
    """``(n + 1,)`` seconds: where one window's step ends and the next one's begins."""
    centres = np.array(windows).mean(1)
    return np.array([windows[0][0], *(centres[:-1] + centres[1:]) / 2, windows[-1][1]])


def _column_starts(num_windows: int) -> Any:
    """The first window of each column; columns hold as many as one another, but for one."""
    columns = min(num_windows, MAX_COLUMNS)
    return np.arange(columns) * num_windows // columns


def _label_time(axes: Any, end: float, note: str) -> None:
    if end < LONG:
        axes.set_xlabel(f"time, s{note}")
        return
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    steps = (20, 30, 60, 120, 300, 600, 900, 1800)
    step = next((step for step in steps if end / step <= 8), 3600 * max(1, round(end / 8 / 3600)))
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{int(t) // 60}:{int(t) % 60:02d}"))
    axes.set_xlabel(f"time, min:s{note}")


def _strip_size(source: Any) -> tuple[int, float]:
    """How many whole pictures, side by side, are as wide as the time axis, and how high they are then."""
    if source is None:
        return 0, 0.0
    aspect = source.width / source.height
    frames = min(MAX_FRAMES, max(1, round(AXES_WIDTH / (STRIP_HEIGHT * aspect))))
    return frames, min(HIGHEST_STRIP, AXES_WIDTH / frames / aspect)


def _film_strip(source: Any, middles: list[float], is_there: Any, inches: float) -> Any:
    """``(h, n * w, 3)`` uint8: each picture is of the middle of the time that it stands above, if anybody is there."""
    num_frames = len(middles)
    slot = round(AXES_WIDTH * PIXELS_PER_INCH / num_frames)
    h = max(1, round(inches * PIXELS_PER_INCH))
    w = min(slot, max(1, round(h * source.width / source.height)))
    if isinstance(source, FilmStrip):
        frames = source.nearest(middles)
    else:
        frames = read_frames(source, FrameSampler(num_frames)(source))
    small = F.interpolate(frames, (h, w), mode="bilinear", antialias=True)
    left = (slot - w) // 2  # of a portrait that is higher than there is room for
    slots = torch.full((num_frames, 3, h, slot), 255, dtype=torch.uint8)
    slots[..., left : left + w] = small
    slots[~torch.from_numpy(is_there)] = 255
    return rearrange(slots, "t c h w -> h (t w) c").numpy()


def _shortened(figure: Any, text: str, inches: float, size: float) -> str:
    """``text``, cut where it would be wider than ``inches``."""
    text = printable(text)
    probe = figure.text(0, 0, text, size=size, parse_math=False)
    length = min(len(text), 300)  # nothing longer fits, and measuring takes its time
    while True:
        shown = text if length == len(text) else text[:length].rstrip() + "…"
        probe.set_text(shown)
        use_any_font(probe)
        with any_script():
            width = probe.get_window_extent().width / figure.dpi
        if width <= inches or length <= 1:
            break
        length = min(length - 1, max(1, int(length * inches / width)))
    probe.remove()
    return shown
