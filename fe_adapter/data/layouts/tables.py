"""Lists of clips in text files as repositories write them: with commas, tabs, blanks; UTF-8 or GBK; CRLF; a header."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fe_adapter.errors import InputError

_PATHS = ("path", "video_name", "video", "file", "filename", "name", "clip")  # what headers call the columns
_COUNTS = ("num_frames", "frames", "num", "count", "length")
_LABELS = ("label", "labels", "id", "class", "emotion", "target")


def read_list(file: Path) -> list[tuple[str, str, int | None]]:
    """Name, label and promised number of frames (None where none is promised) of every line of a list.

    Raises:
        InputError: the file is missing, empty, or a line has no name or no label.
    """
    lines = [line.strip() for line in read_text(file).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"{file} is empty")
    rows = _cells(lines)
    columns = [cell.lower() for cell in rows[0]]
    numbered = list(enumerate(rows, 1))
    if _is_header(columns):
        name_at, label_at = (next(i for i, c in enumerate(columns) if c in of) for of in (_PATHS, _LABELS))
        count_at = next((i for i, column in enumerate(columns) if column in _COUNTS), None)
        numbered = numbered[1:]
    else:
        is_counted = len(columns) == 3 and all(row[1].isdecimal() for row in rows if len(row) == 3)
        name_at, label_at, count_at = (0, 2, 1) if is_counted else (0, 1, None)
    found = []
    for number, row in numbered:
        if len(row) < 2 or len(row) != len(columns) or not row[name_at] or not row[label_at]:
            raise InputError(f"{file}, line {number}: {' '.join(row)!r} is no name and label")
        count = None if count_at is None or not row[count_at].isdecimal() else int(row[count_at])
        found.append((row[name_at], row[label_at], count))
    return found


def read_text(file: Path) -> str:
    """A text file in UTF-8, or else in GB18030, as lists from China are.

    Raises:
        InputError: the file is missing, or in neither.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{file} is no text file, neither in UTF-8 nor in GB18030")


def _cells(lines: list[str]) -> list[list[str]]:
    """The cells of every line, by the separator that the header or else every line has; or by blanks."""
    for mark in "\t,;":
        if _is_header(_split(lines[:1], mark)[0]) or all(mark in line for line in lines):
            return _split(lines, mark)
    ends = [line.rsplit(None, 2) for line in lines]  # from the right: paths have blanks in them
    is_counted = all(len(end) == 3 and end[1].isdecimal() and end[2].isdecimal() for end in ends)
    return ends if is_counted else [line.rsplit(None, 1) for line in lines]


def _split(lines: list[str], mark: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=mark, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in reader]


def _is_header(columns: list[str]) -> bool:
    found = {column.lower() for column in columns}
    return bool(found.intersection(_PATHS) and found.intersection(_LABELS))
