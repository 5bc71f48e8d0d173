"""The house: where things are, and which way imports go. `lint-imports` holds the wings (pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = [path for path in (ROOT / "fe_adapter").rglob("*.py") if "kernels" not in path.parts]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_between_wings_go_one_way():
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_know_tensors_only(path):
    of_ours = {name for name in imports(path) if name.startswith(("fe_adapter", "bench"))}
    assert all(name.startswith("fe_adapter.kernels.") for name in of_ours), of_ours


def test_modules_are_few_public_and_short():
    assert len(list((ROOT / "fe_adapter").glob("*.py"))) <= 14
    assert [path.name for path in LIBRARY if path.stem.startswith("_") and not path.stem.startswith("__")] == []
    lines = {path: path.read_text().count("\n") for path in LIBRARY}
    assert [path.name for path in LIBRARY if lines[path] > (150 if path.parent.name == "cli" else 400)] == []
    assert (ROOT / "kernels" / "__init__.py").exists() is False


def test_an_underscore_is_private_to_its_file():
    for path in LIBRARY:
        private = {
            name for name in imports(path) if name.startswith("fe_adapter") and name.rpartition(".")[2][0] == "_"
        }
        assert private <= {"fe_adapter.__version__"}, path
