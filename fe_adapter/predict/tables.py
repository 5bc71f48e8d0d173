"""Tables of predictions: one row for every window and person, as CSV or Parquet, under names that others know."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fe_adapter.files import atomic_write, cannot_write, write_csv
from fe_adapter.libraries import require

Record = dict[str, Any]
# py-feat 2 (feat/utils/__init__.py) knows input, frame, the face's rectangle and score; the others are ours
COLUMNS: dict[str, type] = {
    "input": str, "frame": int, "timestamp": float, "start": float, "end": float, "face_id": int, "FaceRectX": float,
    "FaceRectY": float, "FaceRectWidth": float, "FaceRectHeight": float, "FaceScore": float, "success": int,
    "label": str,
}  # fmt: skip
STREAM = ("time", "latency")  # what a table of --stream has beside the classes
# the output of OpenFace 2.2's FeatureExtraction begins with these; it counts frames from 1
OPENFACE = {"frame": "frame", "face_id": "face_id", "timestamp": "timestamp", "FaceScore": "confidence",
            "success": "success"}  # fmt: skip
STYLES = ("feat", "openface")


def class_columns(class_names: Sequence[str]) -> list[str]:
    """The columns of the classes: their names, marked where a column of another meaning has that name."""
    taken = {*COLUMNS, *OPENFACE.values(), *STREAM}
    return [f"{name} (class)" if name in taken else name for name in class_names]


def in_style(record: Mapping[str, Any], style: str) -> Record:
    """A record of ours under the names and in the order of a style."""
    if style == "feat":
        return dict(record)
    known = {name: record[ours] for ours, name in OPENFACE.items()}
    known["frame"] = None if record["frame"] is None else record["frame"] + 1
    return known | {name: value for name, value in record.items() if name not in OPENFACE}


def written(record: Mapping[str, Any]) -> list[str]:
    """The values of a record as a CSV file has them: milliseconds, hundredths of a pixel, millionths."""
    return [_written(name, value) for name, value in record.items()]


def _written(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = 3 if name in ("time", "timestamp", "start", "end") else 2 if name.startswith("FaceRect") else 6
    return f"{value:.{digits}f}"


def write_table(path: Path, records: Sequence[Record]) -> None:
    """Write records, at least one, as CSV, or as Parquet where ``path`` ends so.

    Raises:
        InputError: the file cannot be written, or Parquet is wanted and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, records)
    else:
        write_csv(path, [list(records[0]), *map(written, records)])


def check_parquet() -> None:
    """Raise `InputError` where Parquet cannot be written."""
    require("pyarrow", "writing Parquet", "parquet")


def _write_parquet(path: Path, records: Sequence[Record]) -> None:
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    fields = [(name, kinds[COLUMNS.get(name, float)]) for name in records[0]]  # a column may hold nothing
    valid = [{name: _valid(value) for name, value in record.items()} for record in records]
    table = pyarrow.Table.from_pylist(valid, schema=pyarrow.schema(fields))
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(table, file)


def _valid(value: Any) -> Any:
    """A name may be in any encoding, and Parquet's text is UTF-8."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


class GrowingTable:
    """A CSV file that is written row by row, each on disk before the next one.

    Raises:
        InputError: it cannot be written, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def add(self, record: Record) -> None:
        """Write a row, above the first one the names of the columns."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb", buffering=0)
                self._file.write(_line(list(record)))
            self._file.write(_line(written(record)))
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def remove(self) -> None:
        """Close it, and delete it: what it said is elsewhere now."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> GrowingTable:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _line(values: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode(errors="surrogateescape")
