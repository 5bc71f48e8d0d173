"""``fe-adapter push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fe_adapter.cli.options import words
from fe_adapter.files import check_folder, make_folder
from fe_adapter.sharing.folder import find_model
from fe_adapter.sharing.hub import push as push_to_hub
from fe_adapter.sharing.hub import stage

EXAMPLES = (
    "fe-adapter push run me/my-adapter --license cc-by-nc-4.0 --private",
    "fe-adapter push run me/my-adapter --dry-run to-be-pushed",
)


def push(
    *,
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="What train wrote, or an adapter folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Of the adapter, as the hub calls it: cc-by-nc-4.0, apache-2.0, …")
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option(help="Write what would be pushed into this folder, and push nothing.")
    ] = None,
) -> None:
    """Share a trained adapter: its folder and a model card, in one commit.

    The card says what was trained on what, and the figures of the last fe-adapter eval: read it before you push. The
    backbone's weights stay where they are. Others load it as hub:OWNER/NAME.
    """
    folder = find_model(run_folder)
    if dry_run is not None:
        check_folder(dry_run)
        make_folder(dry_run)
        stage(folder, dry_run, repository, license)
        words.print(f"written to {dry_run}; nothing is pushed")
        return
    words.print(f"pushed: {push_to_hub(folder, repository, private=private, license=license)}")
