"""Files that are whole or not there: JSON, CSV, figures, tensors."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import io
import json
import logging
import os
import reprlib
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from torch import Tensor

from fe_adapter.errors import DiskFullError, InputError

_log = logging.getLogger("fe_adapter")
T = TypeVar("T")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` at the end of the block, whole and on disk.

    Folders above it are made. If anything fails, what was at ``path`` before is still there.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to raise where ``path`` cannot be written."""
    kind = DiskFullError if is_disk_full(error) else InputError
    return kind(f"cannot write {path}: {error.strerror or error}")


def is_disk_full(error: OSError) -> bool:
    """Whether there is no room left, or none that this user may have."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within the context no other process is in it for the same ``folder``, which is made and, if empty, removed.

    The lock is the system's: that of a process that is gone is in nobody's way.

    Raises:
        InputError: another one is, or the folder cannot be written to.
    """
    from filelock import FileLock, Timeout  # PyTorch needs it, too

    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)  # of one process, which may be in it twice
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is writing to {folder}; choose another folder, or wait for it") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # which something is in
            for path in new:
                path.rmdir()


def check_folder(path: Path) -> None:
    """Raise `InputError` where a folder could not be made, or not be written to; nothing is made."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"cannot make the folder {path}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"cannot write to the folder {there}: permission denied")


def make_folder(path: Path) -> None:
    """Make a folder that can be written to, and those above it.

    Raises:
        InputError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror or error}") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"cannot write to the folder {path}: permission denied")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no whole JSON file: {error}") from None


def read_as(kind: type[T], path: Path, is_wrong: str = "is damaged") -> T:
    """The content of a JSON file as a ``kind``, a dataclass or a pydantic model: its types, bounds and checks hold.

    Raises:
        InputError: the file is missing or no JSON, or else it ``is_wrong``; the first field that is amiss is named.
    """
    return check_as(kind, read_json(path), path, is_wrong)


def check_as(kind: type[T], content: Any, path: Path, is_wrong: str) -> T:
    """As `read_as`, of the JSON values that ``path`` held."""
    from pydantic import TypeAdapter, ValidationError  # not before it is needed: the kernels' checks go without

    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        reason = textwrap.shorten(_first_reason(error.errors(include_url=False)[0]), 300, placeholder=" …")
        raise InputError(f"{path} {is_wrong}: {reason}") from None


def _first_reason(error: Any) -> str:
    """What is wrong with which field, as pydantic found it."""
    field, message = ".".join(map(str, error["loc"])), error["msg"]
    if error["type"] == "value_error":  # of a check of ours
        return f"{field}: {error['ctx']['error']}" if field else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{field} is missing"
    message = message[0].lower() + message[1:]
    return f"{field} is {reprlib.repr(error['input'])}: {message}" if field else message


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        InputError: the file is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError  # not before it is needed: the kernels' checks go without
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file: {error}") from None


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or infinite values."""
    # kinds of eight bits can be told by their values in fp32 only
    wide = {name: t.float() if t.is_floating_point() and t.element_size() == 1 else t for name, t in tensors.items()}
    return [name for name, t in wide.items() if not t.isfinite().all()]


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    """Write ``rows``, the header first."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))  # a file's name may be in any encoding


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure of ``width`` by ``height`` inches and its axes, independent of any display."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib; pip install 'fe-adapter[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def write_figure(figure: Any, path: Path) -> None:
    """Write ``figure`` as PNG. What it says is text, whatever it may look like."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # two $ are no formula
        text.set_text(printable(text.get_text()))
        use_any_font(text)
    with atomic_write(path) as file, any_script():
        figure.savefig(file, format="png", dpi=120)


def use_any_font(text: Any) -> None:
    """Let a matplotlib text take what its font does not have from other fonts, where any that is installed has it."""
    words = text.get_text()
    if words.isascii():
        return
    from matplotlib import font_manager

    own = font_manager.get_font(font_manager.findfont(text.get_fontproperties())).get_charmap()
    missing = frozenset(c for c in words if ord(c) not in own and c.isprintable())
    if missing:
        text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *_fonts_with(missing)])))


@functools.cache
def _fonts_with(characters: frozenset[str]) -> list[str]:
    """The families of as few fonts as have all of ``characters`` that any has."""
    from matplotlib import font_manager

    found: dict[str, set[str]] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.name in found or entry.name.startswith("Last Resort"):  # which has a box for everything
            continue
        with contextlib.suppress(OSError, RuntimeError):  # a font that is gone, or of coloured pictures
            held = font_manager.get_font(entry.fname).get_charmap()
            found[entry.name] = {c for c in characters if ord(c) in held}
    left, chosen = set(characters), []
    while left:
        name = max(found, key=lambda name: len(found[name] & left))
        if not found[name] & left:
            _say_that_boxes_are_shown()
            break
        left -= found[name]
        chosen.append(name)
    return chosen


@functools.cache
def _say_that_boxes_are_shown() -> None:
    _log.warning(
        "no installed font has some characters of the names; pictures show boxes for them (Noto Sans CJK has many)"
    )


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """Within the context matplotlib does not warn of a script that no font has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def printable(text: str) -> str:
    """``text`` in one line of valid Unicode."""
    return " ".join(text.encode("utf-8", "replace").decode().splitlines())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
