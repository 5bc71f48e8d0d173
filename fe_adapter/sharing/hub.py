"""Adapter folders on the Hugging Face hub: fetched by ``hub:OWNER/NAME``, and pushed with a model card."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from fe_adapter.backbones.hub import hub_or_cache
from fe_adapter.errors import InputError, in_one_line
from fe_adapter.files import read_json, write_json
from fe_adapter.libraries import require
from fe_adapter.sharing.content import CONFIG_FILE, WEIGHTS_FILE

PREFIX = "hub:"
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)")
_WITH_REVISION = re.compile(rf"{_REPOSITORY.pattern}(?:@(.+))?")


def is_on_hub(folder: Path | str) -> bool:
    """Whether ``folder`` is no folder here, but ``hub:OWNER/NAME``."""
    return str(folder).startswith(PREFIX)


def local_folder(folder: Path | str) -> Path:
    """``folder``; of ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``, where the library's cache has it.

    The two files of an adapter folder are fetched, and nothing else. Where the hub does not answer, the cache serves.

    Raises:
        InputError: huggingface_hub is not installed; there is no such repository, or it holds no adapter folder.
    """
    if not is_on_hub(folder):
        return Path(folder)
    expected = f"{PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION"
    name, revision = _matched(_WITH_REVISION, str(folder).removeprefix(PREFIX), expected).groups()
    require("huggingface_hub", str(folder), "hub")
    from huggingface_hub import snapshot_download

    with hub_or_cache(), in_one_line(str(folder)):
        fetched = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    if not (fetched / CONFIG_FILE).exists():
        raise InputError(f"{folder} holds no adapter folder: {CONFIG_FILE} is not in it")
    return fetched


def push(folder: Path | str, repository: str, *, private: bool = False, license: str | None = None) -> str:
    """Put an adapter folder with its card into a repository of the hub, which is made if need be, as one commit.

    Of a path where the backbone's weights or a face detector lie here, its last part alone is told. The token is that
    of ``huggingface-cli login``, or of the variable ``HF_TOKEN``.

    Args:
        folder: written by `save_adapter`.
        repository: ``OWNER/NAME``.
        private: make a new repository private.
        license: of the adapter, as the hub calls it, such as "cc-by-nc-4.0"; None names none.

    Returns:
        The address of the commit.

    Raises:
        InputError: ``folder`` is none, huggingface_hub is not installed, or the hub refuses.
    """
    folder = Path(folder)
    _matched(_REPOSITORY, repository, "OWNER/NAME")
    require("huggingface_hub", "push", "hub")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        stage(folder, staged, repository, license)
        with in_one_line(f"{PREFIX}{repository}"):
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=staged, commit_message="fe-adapter push")
    return commit.commit_url


def stage(folder: Path, out: Path, title: str, license: str | None = None) -> None:
    """Write into ``out`` what `push` uploads: the folder's two files, and a card that is called ``title``.

    Raises:
        InputError: ``folder`` is no adapter folder, ``title`` no ``OWNER/NAME``, or ``out`` holds something.
    """
    _matched(_REPOSITORY, title, "OWNER/NAME")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} holds something; choose an empty folder for what would be pushed")
    from fe_adapter.sharing.card import CARD_FILE, model_card  # not before they are needed: loading goes without

    card = model_card(folder, title, license)
    content = read_json(folder / CONFIG_FILE)
    backbone = content.get("backbone")
    if backbone is not None:
        backbone["weights"] = Path(backbone["weights"]).name
    if faces := (content.get("classifier") or {}).get("faces"):
        faces["detector"] = Path(faces["detector"]).name
    write_json(out / CONFIG_FILE, content)
    shutil.copyfile(folder / WEIGHTS_FILE, out / WEIGHTS_FILE)
    (out / CARD_FILE).write_text(card, encoding="utf-8")


def _matched(pattern: re.Pattern[str], name: str, expected: str) -> re.Match[str]:
    match = pattern.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no repository of the hub; expected {expected}")
    return match
