"""``settings.json`` of a run: every option that the command line had."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fe_adapter.data.annotations import Cutting, is_annotation, marks_of
from fe_adapter.data.packed import is_pack
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.data.sources import layout_of
from fe_adapter.errors import InputError
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


def tested_on(model: VideoClassifier, folder: Path, data: str | os.PathLike[str], own: ClipRecipe) -> ClipRecipe:
    """What the clips of ``data`` are for a test: as in training (`trained_on`), of the fold that was left out there.

    Args:
        model: trained, and loaded from ``folder``.
        folder: of the run, or of the adapter.
        data: to be tested on.
        own: says where the data's folders are, which fold of another data set is meant, and what to do with damage.

    Raises:
        InputError: ``own`` asks for another fold of the data set that the model was trained on.
    """
    recipe, trained = trained_on(model, folder), model.clip_sampling or {}
    layout = layout_of(data)
    fold, select_on_test = own.fold, False
    if layout is not None and layout.name == trained.get("layout"):
        if fold not in (None, trained.get("fold")):
            raise InputError(
                f"{folder} was trained on fold {trained['fold']} of {layout.title}; the test clips of fold {fold} "
                "were in its training"
            )
        fold, select_on_test = trained.get("fold"), trained.get("select_on_test", False)
    path = Path(data)
    if not is_pack(path) and not (path.exists() and is_annotation(path)):  # nothing is marked in it
        recipe = dataclasses.replace(recipe, **dataclasses.asdict(Cutting()))
    elif trained.get("marks") and not is_pack(path) and marks_of(path, recipe.cutting()) != trained["marks"]:
        _log.warning(
            "%s: the marks are not those of training; if they are of the same videos, what is held out of them now may "
            "have been trained on",
            data,
        )
    return dataclasses.replace(
        recipe,
        num_frames=model.num_frames,
        on_error=own.on_error,
        tier=own.tier or recipe.tier,
        fold=fold,
        frames_folder=own.frames_folder,
        lists_folder=own.lists_folder,
        select_on_test=select_on_test,
    )


def trained_on(model: VideoClassifier, folder: Path) -> ClipRecipe:
    """What the clips were that a model was trained on, which it was loaded from ``folder`` or a folder in it.

    Models from before they knew it themselves: by the settings of the run, else those of `train` by default, which is
    logged.

    Raises:
        InputError: the settings are damaged.
    """
    if model.clip_sampling is not None:
        about = ("layout", "marks")  # the data, and not its clips
        known = {n: value for n, value in model.clip_sampling.items() if value is not None and n not in about}
        return ClipRecipe(num_frames=model.num_frames, **known)
    for file in (folder / SETTINGS_FILE, folder.parent / SETTINGS_FILE):
        if file.exists():
            return read_as(ClipRecipe, file)
    recipe = ClipRecipe(num_frames=model.num_frames)
    _log.warning("%s does not say which frames made its clips; taken are %s ones", folder, recipe.sampling)
    return recipe
