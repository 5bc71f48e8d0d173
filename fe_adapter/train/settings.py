"""``settings.json`` of a run: every option that the command line had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.files import read_as, write_json

SETTINGS_FILE = "settings.json"


def write_settings(run_folder: Path, options: dict[str, Any]) -> None:
    """Write ``options``, by name, as the command line or a TOML file had them."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    write_json(run_folder / SETTINGS_FILE, plain)


def clips_of_run(run_folder: Path) -> ClipRecipe:
    """What the clips of a run are; those of `train` by default where the folder is no run.

    Raises:
        InputError: its settings are damaged.
    """
    file = run_folder / SETTINGS_FILE
    return read_as(ClipRecipe, file) if file.exists() else ClipRecipe()
