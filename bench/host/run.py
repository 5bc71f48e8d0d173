"""Host times and counts, measured in a process that sees the imitated CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.host.build import environment
from bench.measure.results import ROOT
from bench.measure.results import environment as machine
from fe_adapter.checks import check_choice
from fe_adapter.errors import InputError
from fe_adapter.files import read_json

CASES = ("layer", "step", "fit")
IMITATED = "an imitated CUDA: launches return at once and compute nothing"


def measured(case: str, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """By title and contender, what `bench.host.measure` found.

    Raises:
        InputError: there is no such case, or no such CUDA can be built here.
        RuntimeError: the process failed; the message is the end of what it said.
    """
    check_choice("case", case, CASES)
    command = [sys.executable, "-m", "bench.host.measure", case, str(rounds)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench.host.measure {case} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def with_case(path: Path, case: str, rounds: int, tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What the file of host times at ``path`` holds, if it is there, with the rows of ``case`` made anew.

    Raises:
        InputError: it is there, and is no such file.
    """
    content: Any = read_json(path) if path.exists() else {"measured on": IMITATED, "cases": {}}
    is_ours = isinstance(content, dict) and content.get("measured on") == IMITATED
    if not is_ours or not isinstance(cases := content.get("cases"), dict):
        raise InputError(f"{path} is no file of host times")
    cases[case] = {"machine": machine(), "rounds": rounds, "tables": tables}
    return content
