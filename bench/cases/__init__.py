"""One file a case: add one, and it is measured, reported and compared with the rest."""

from __future__ import annotations

import importlib
import pkgutil

from bench.measure.case import Case


def get_cases() -> dict[str, Case]:
    """Every case, by name, in the order in which a suite runs them: the modules here that have ``points``."""
    modules = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "points")}
