"""Result files: what was measured, on what machine; whole at any moment."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any, TypedDict

import torch

from fe_adapter.environment import machine
from fe_adapter.errors import InputError
from fe_adapter.files import read_json, write_json

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench" / "results"
MIB = 2**20


class Figures(TypedDict):
    """What a provider took at a point: milliseconds of every round, bytes by what they are."""

    role: str
    ms: list[float]
    bytes: dict[str, int]


class Record(TypedDict):
    """What was measured at one point of a case, or why nothing was."""

    case: str
    point: dict[str, Any]
    baseline: str
    command: str
    providers: dict[str, Figures]
    skipped: dict[str, str]  # why, by provider
    failures: dict[str, str]
    seconds: float  # that all of it took


class Results:
    """The records of one machine, on disk after each.

    Args:
        path: the JSON file; None keeps them in memory only.
        resume: keep the records that are there already.
        quick: they are of tiny sizes, and not for a report.

    Raises:
        InputError: ``resume``, and the file was measured on another machine, with other versions or another commit, or
            is no result file; or it cannot be written.
    """

    def __init__(self, path: Path | None, resume: bool = False, quick: bool = False) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": environment(), "quick": quick, "records": []}
        if resume and path is not None and path.exists():
            content = read_results(path)
            for name, value in self.content["machine"].items():
                if name != "date" and content["machine"].get(name) != value:
                    was = content["machine"].get(name)
                    raise InputError(
                        f"{path} was measured with {name}={was!r}, this is {value!r}; start it anew, without --resume"
                    )
            self.content = content
        self.write()  # that it cannot be written is to show before anything is measured

    def has(self, case: str, parameters: dict[str, Any]) -> bool:
        """Whether there is a record of this point already."""
        return any(record["case"] == case and record["point"] == parameters for record in self.content["records"])

    def add(self, record: Record) -> None:
        """Add one record and write the file."""
        self.content["records"].append(record)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        if self.path is not None:
            write_json(self.path, self.content)


def is_suite(content: Any) -> bool:
    """Whether a JSON value is that of a result file."""
    return isinstance(content, dict) and {"machine", "records"} <= content.keys()


def read_results(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        InputError: it is none, or cannot be read.
    """
    content = read_json(path)
    if not is_suite(content):
        raise InputError(f"{path} is no result file")
    return content


def point_name(record: Record, without: tuple[str, ...] = ()) -> str:
    """The point of a record in a line, as `bench.measure.case.Point` puts it."""
    return " ".join(f"{name}={value}" for name, value in record["point"].items() if name not in without)


def environment() -> dict[str, Any]:
    """What a figure depends on: device, driver, versions, commit, threads."""
    found: dict[str, Any] = {**machine(), "commit": _commit()}
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "not installed"
    if torch.cuda.is_available():
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["CUDA of torch"] = torch.version.cuda
    return found


def _commit() -> str:
    """The commit that is checked out, marked where the code differs from it."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", "fe_adapter", "kernels", "bench", ":!bench/results")
    return f"{commit} with changes" if changed else commit or "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
