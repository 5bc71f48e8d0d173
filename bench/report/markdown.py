"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """The lines of a table; ``align`` has a letter for each column: l(eft) or r(ight)."""
    rule = "".join({"l": "---|", "r": "--:|"}[letter] for letter in align)
    return [_line(heads), f"|{rule}", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
