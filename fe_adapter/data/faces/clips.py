"""Clips of faces: what a data set gives in the place of whole frames."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fe_adapter.checks import check_choice
from fe_adapter.data.faces.detectors import Detector, name_of
from fe_adapter.data.faces.face import FaceRecipe, crop_face
from fe_adapter.data.faces.sightings import Sightings, find_sightings
from fe_adapter.data.video import VideoInfo
from fe_adapter.errors import InputError, some

if TYPE_CHECKING:
    from fe_adapter.data.datasets import VideoDataset
    from fe_adapter.data.listing import Clip

_log = logging.getLogger("fe_adapter")
ON_NO_FACE = ("fail", "skip")


class ClipFaces:
    """Where the face of each clip is: of the person who is seen most often in it.

    In the place of a frame in which they are not seen there is the nearest one of the clip in which they are.

    Args:
        recipe: how they were found, and how they are cut out.
        sightings: one for every clip, none of them empty.
    """

    def __init__(self, recipe: FaceRecipe, sightings: Sequence[Sightings]) -> None:
        self.recipe, self._sightings = recipe, list(sightings)

    def describe(self) -> dict[str, Any]:
        """The recipe, and a hash of what was found by it, as JSON values."""
        whole = hashlib.blake2b(digest_size=16)
        for seen in self._sightings:
            whole.update(seen.frames.tobytes() + seen.boxes.tobytes())
        return self.recipe.as_dict() | {"boxes": whole.hexdigest()}

    def nearest(self, index: int, info: VideoInfo, frames: Sequence[int]) -> tuple[list[int], list[int]]:
        """For each of ``frames`` of a clip, the frame to show, and which of its sightings that is."""
        own = self._sightings[index]
        places = own.nearest(frames, info.timestamps)
        return own.frames[places].tolist(), places

    def cut(self, index: int, frames: Tensor, places: Sequence[int]) -> Tensor:
        """uint8 ``(T, 3, S, S)``: the face in each of ``frames`` ``(T, 3, H, W)``, as of `nearest`."""
        own = self._sightings[index]
        pairs = zip(frames, places, strict=True)
        return torch.stack([crop_face(frame, own.face(place), self.recipe) for frame, place in pairs])


def crop_to_faces(
    dataset: VideoDataset,
    recipe: FaceRecipe,
    *,
    detector: Detector | None = None,
    on_no_face: str = "fail",
    cache: Path | str | None = None,
    num_workers: int | str = "auto",
    progress: bool = True,
) -> None:
    """Let the clips of ``dataset`` be of faces from now on, found in all frames of its videos.

    What finds, follows and cuts them out is what does so in prediction.

    Args:
        dataset: changed in place.
        recipe: "largest"; a clip has one label, and so one face.
        detector: of one's own, by whose name it is remembered; None is the recipe's.
        on_no_face: "fail" at clips without a face, naming them; or "skip", leave them out, and say so.
        cache: folder where boxes are kept, as of `find_sightings`.
        num_workers: likewise.
        progress: show a progress bar.

    Raises:
        InputError: clips without a face; a class of which none is left; as `find_sightings`.
    """
    check_choice("on_no_face", on_no_face, ON_NO_FACE)
    check_one_face(recipe)
    if detector is not None:
        recipe = dataclasses.replace(recipe, detector=name_of(detector))  # as a model should remember it
    found = find_sightings(
        list(dataset.infos.values()),
        recipe,
        detector,
        cache=None if cache is None else Path(cache),
        num_workers=num_workers,
        progress=progress,
    )
    own = [of_clip(clip, dataset.infos[clip.path], found[clip.path]) for clip in dataset.clips]
    without = [name for name, seen in zip(dataset.paths, own, strict=True) if not len(seen.frames)]
    if without:
        what = f"{dataset.source}: no face is found in {len(without)} of {len(own)} clips: {some(without)}"
        if on_no_face == "fail":
            advice = "on_no_face='skip' (--on-no-face skip) leaves them out; data check --faces largest names them all"
            raise InputError(f"{what}. {advice}")
        _log.warning("%s; left out", what)
        dataset.keep([i for i, seen in enumerate(own) if len(seen.frames)], "without a face")
        own = [seen for seen in own if len(seen.frames)]
    dataset.faceless = without
    dataset.faces = ClipFaces(recipe, own)


def check_one_face(recipe: FaceRecipe) -> None:
    """Raise `InputError` unless ``recipe`` says of which face a clip is."""
    if recipe.which == "all":
        raise InputError("faces='all' is for prediction; a clip to train on has one label: take faces='largest'")
    if recipe.which == "none":
        raise InputError("faces='none' cuts out no faces; take faces='largest'")


def of_clip(clip: Clip, info: VideoInfo, seen: Sightings) -> Sightings:
    """Of a video's faces those of one person, in the part that is the clip."""
    start, end = (0.0, info.duration) if clip.window is None else clip.window
    first = max(0, int(np.searchsorted(info.timestamps, start + 1e-6, side="right")) - 1)  # on show at the start
    return seen.of_one(first, max(first + 1, int(np.searchsorted(info.timestamps, end - 1e-6))))
