"""``settings.json`` of a run: every option that the command line had."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.files import only_one, read_as, write_json
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.train.state import CHECKPOINT, read_metadata

_log = logging.getLogger("fe_adapter")

SETTINGS_FILE = "settings.json"


@contextlib.contextmanager
def settings_written(run_folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Within the context the folder is this run's alone; a new run's ``options``, by name, are written to it.

    Of several processes the first one does it.

    Raises:
        InputError: another run is in the folder, or it cannot be written to.
    """
    is_first, checkpoint = os.environ.get("RANK", "0") == "0", run_folder / CHECKPOINT
    if checkpoint.exists():
        read_metadata(checkpoint)  # a damaged one is refused before anything else happens
    with only_one(run_folder) if is_first else contextlib.nullcontext():
        if is_first and not checkpoint.exists():  # or they are those of the run that is resumed
            plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
            write_json(run_folder / SETTINGS_FILE, plain)
        yield


def trained_on(model: VideoClassifier, folder: Path) -> ClipRecipe:
    """What the clips were that a model was trained on, which it was loaded from ``folder`` or a folder in it.

    Models from before they knew it themselves: by the settings of the run, else those of `train` by default, which is
    logged.

    Raises:
        InputError: the settings are damaged.
    """
    if model.clip_sampling is not None:
        known = {name: value for name, value in model.clip_sampling.items() if value is not None}
        return ClipRecipe(num_frames=model.num_frames, **known)
    for file in (folder / SETTINGS_FILE, folder.parent / SETTINGS_FILE):
        if file.exists():
            return read_as(ClipRecipe, file)
    recipe = ClipRecipe(num_frames=model.num_frames)
    _log.warning("%s does not say which frames made its clips; taken are %s ones", folder, recipe.sampling)
    return recipe
