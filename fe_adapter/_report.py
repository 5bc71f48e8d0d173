"""Results as files: JSON, CSV and PNG, each whole or not there."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fe_adapter._io import atomic_write
from fe_adapter.errors import InputError


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    """Write ``rows``, the header first."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure of ``width`` by ``height`` inches and its axes, independent of any display."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib; pip install 'fe-adapter[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def write_figure(figure: Any, path: Path) -> None:
    """Write ``figure`` as PNG."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
