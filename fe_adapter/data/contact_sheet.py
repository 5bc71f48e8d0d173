"""Pictures of a data set: the middle frames of a few clips of every class, and how long and how large clips are."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from fe_adapter.data.faces.face import FaceRecipe, crop_face
from fe_adapter.data.faces.sightings import Sightings
from fe_adapter.data.listing import Clip
from fe_adapter.data.reading import read_frames
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError
from fe_adapter.files import new_figure

COLUMNS, TILE = 10, 96  # clips of a class, and pixels
_MOST_CLASSES, _MOST_SIZES = 40, 8


def draw_contact_sheet(
    clips: Sequence[Clip], infos: Mapping[str, VideoInfo], faces: Mapping[str, Sightings] | None = None
) -> Any:
    """A matplotlib figure with a row for every class: the middle frame of up to ten clips, spread over all of them.

    With ``faces``, by the clips' names, there are those. What cannot be decoded, or shows no face, is grey.
    """
    by_class: dict[str, list[Clip]] = collections.defaultdict(list)
    for clip in clips:
        by_class[clip.class_name].append(clip)
    names = list(by_class)[:_MOST_CLASSES]
    rows = []
    for name in names:
        own = by_class[name]
        chosen = [own[i] for i in np.linspace(0, len(own) - 1, min(COLUMNS, len(own))).astype(int)]
        tiles = [_tile(infos[clip.path], clip.window, None if faces is None else faces[clip.name]) for clip in chosen]
        tiles += [torch.full((3, TILE, TILE), 255, dtype=torch.uint8)] * (COLUMNS - len(tiles))
        rows.append(torch.stack(tiles))
    figure, axes = new_figure(1.2 + 0.8 * COLUMNS, 0.5 + 0.8 * len(rows))
    axes.imshow(rearrange(torch.stack(rows), "r c k h w -> (r h) (c w) k").numpy())
    axes.set_yticks([TILE * (i + 0.5) for i in range(len(names))], names)
    axes.set_xticks([])
    axes.set_frame_on(False)
    axes.set_title(f"{'middle frames' if faces is None else 'faces'}, {len(clips):,} clips")
    return figure


def draw_histograms(infos: Sequence[VideoInfo]) -> Any:
    """A matplotlib figure: how many clips have how many frames, and of which sizes they are."""
    figure, axes = new_figure(9, 3)
    axes.remove()
    left, right = figure.subplots(1, 2)
    frames = [info.num_frames for info in infos]
    edges = np.linspace(min(frames) - 0.5, max(frames) + 0.5, min(50, max(frames) - min(frames) + 1) + 1)
    left.hist(frames, bins=edges, color="C0")
    left.set(xlabel="frames", ylabel="clips", title=f"{min(frames)} to {max(frames)}, median {np.median(frames):.0f}")
    sizes = collections.Counter(f"{info.height}x{info.width}" for info in infos).most_common(_MOST_SIZES)
    right.barh([size for size, _ in sizes][::-1], [count for _, count in sizes][::-1], color="C0")
    right.set(xlabel="clips", title="height x width, the most frequent")
    return figure


def _tile(info: VideoInfo, window: tuple[float, float] | None, seen: Sightings | None) -> torch.Tensor:
    """uint8 ``(3, TILE, TILE)``: the middle frame, or its face, as large as fits, on white."""
    grey, room = torch.full((3, TILE, TILE), 128, dtype=torch.uint8), TILE - 4
    chosen = FrameSampler(1)(info, window=window)
    if seen is not None and not len(seen.frames):
        return grey
    place = 0 if seen is None else seen.nearest(chosen, info.timestamps)[0]
    try:
        frame = read_frames(info, chosen if seen is None else [int(seen.frames[place])])
    except InputError:
        return grey
    if seen is not None:
        return F.pad(crop_face(frame[0], seen.face(place), FaceRecipe("largest", size=room)), (2, 2, 2, 2), value=255)
    scale = room / max(info.height, info.width)
    h, w = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    tile = torch.full((3, TILE, TILE), 255, dtype=torch.uint8)
    top, left = (TILE - h) // 2, (TILE - w) // 2
    tile[:, top : top + h, left : left + w] = F.interpolate(frame, (h, w), mode="bilinear", antialias=True)[0]
    return tile
