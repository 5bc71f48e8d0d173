"""What classes of emotion are called: the same one goes by several names in the published data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fe_adapter.data.listing import Clip

_ALIASES = (
    ("happy", "happiness", "hap"),
    ("sad", "sadness"),
    ("neutral", "neutrality", "neu"),
    ("angry", "anger", "ang"),
    ("surprise", "surprised", "sur"),
    ("disgust", "disgusted", "dis"),
    ("fear", "fearful", "afraid", "fea"),
)
_CANONICAL = {alias: names[0] for names in _ALIASES for alias in names}
SEVEN = tuple(names[0] for names in _ALIASES)  # in DFEW's order, which is ours wherever there are these seven


def canonical(name: str) -> str:
    """One name for all names of an emotion, whatever their case; other names in lower case."""
    name = name.strip().lower()
    return _CANONICAL.get(name, name)


def find_class(name: str, class_names: Sequence[str]) -> str | None:
    """Which of ``class_names`` is meant by ``name``: the very name, or another one for the same emotion."""
    if name in class_names:
        return name
    return next((own for own in class_names if canonical(own) == canonical(name)), None)


def renamed(clips: list[Clip], class_names: Sequence[str]) -> list[Clip]:
    """The clips by the names that ``class_names`` has for their classes; a class not among them keeps its own."""

    def own(name: str) -> str:
        return find_class(name, class_names) or name

    return [
        dataclasses.replace(
            clip, class_name=own(clip.class_name), votes=tuple((own(name), count) for name, count in clip.votes)
        )
        for clip in clips
    ]
