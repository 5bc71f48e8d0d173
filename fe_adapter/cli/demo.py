"""``fe-adapter demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("fe-adapter demo --out demo", "fe-adapter demo --compare")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for videos, models and results.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Every step, in seconds: too short to learn.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="More models, which tell adapters apart, trained longer: twice the time.")
    ] = False,
) -> None:
    """Render videos of faces, train adapters on them, and compare with what else one would try.

    An expression appears or fades: single frames do not tell which. Two minutes on two CPU cores, the first result
    after one and a half. The models know these drawn faces and nothing else.
    """
    from fe_adapter.demo.run import run_demo

    run_demo(out, quick, compare)
