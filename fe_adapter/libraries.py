"""Optional libraries that talk when they are imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

from fe_adapter.errors import InputError


def require(package: str, user: str, extra: str) -> None:
    """Raise `InputError` where ``package`` is not installed, which ``user`` needs; pip's ``extra`` of ours has it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{user} needs {package}; pip install 'fe-adapter[{extra}]'")


def import_quietly(name: str) -> ModuleType:
    """The module ``name``; what its package warns of and logs meanwhile (that it was built for another PyTorch, or
    would have liked another library beside it) does not reach our users.

    Raises:
        ImportError: it is not installed, or does not work.
    """
    with quiet(name.partition(".")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@contextlib.contextmanager
def quiet(package: str) -> Iterator[None]:
    """Within the context ``package`` logs nothing but what is critical."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
