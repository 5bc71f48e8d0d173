"""What makes a run the one that it is: which settings, model and data must be the same for it to go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from fe_adapter.data.protocol import ClipDataset
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.models.adaptation import get_adaptation
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.origin import identity_of

# On resume, without another result but for rounding (and gelu2bit's, if it comes or goes)
MAY_CHANGE = ("num_workers", "capture", "compile", "save_every", "tracker", "project", "run_name", "memory_policy",
              "precision", "batch_size", "accumulate", "without_lost_files")  # fmt: skip
REMEMBERED = ("clip_seconds", "clip_sampling", "note", "temperature")  # by a model, of its training
OF_FILES = ("num_clips", "files")  # what is another where files are gone


def clip_sampling(train_set: ClipDataset) -> dict[str, Any] | None:
    """What testing has to do as training did, where the data set says it."""
    sampler = train_set.sampler
    if not isinstance(sampler, FrameSampler):
        return None
    val_fraction, origin = getattr(train_set, "val_fraction", None), getattr(train_set, "origin", {})
    return {"sampling": sampler.sampling, "stride": sampler.stride, "val_fraction": val_fraction, **origin}


def faces_of(train_set: ClipDataset) -> dict[str, Any] | None:
    """Which faces the clips are of, and how they were cut out, as prediction has to do it; None of whole frames."""
    recipe = getattr(train_set, "face_recipe", None)
    return None if recipe is None else recipe.as_dict()


def identity(model: VideoClassifier, train_set: ClipDataset) -> dict[str, Any]:
    """What must be the same for a run to go on: the model, the data and what is made of it, as JSON values."""
    described = {name: value for name, value in model.describe().items() if name not in REMEMBERED}
    if model.tune == "adapter":
        described["adapter"] = dataclasses.asdict(get_adaptation(model.vit).config)
    if model.tune != "full":
        described["backbone"] = identity_of(model.vit)
    files = "\n".join(f"{Path(path).name} {y}" for path, y in zip(train_set.paths, train_set.labels, strict=True))
    return json.loads(
        json.dumps(
            {
                "model": described,  # its classes are those of the data
                "num_clips": len(train_set),
                "files": hashlib.blake2b(files.encode(), digest_size=8).hexdigest(),
                "frames": repr(train_set.sampler),
                "transform": repr(train_set.transform),
            }
        )
    )
