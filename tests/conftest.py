"""What must be so before any test imports PyTorch."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# the processes of -n share the cores: with threads of their own, which wait for each other, small products take ten
# times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_docs.py", "test_interpreter.py")


def pytest_collection_modifyitems(items):
    """What takes longest begins first, or one process would still be at it when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_in_the_repository():
    before = set(ROOT.iterdir())
    yield
    left = {path.name for path in set(ROOT.iterdir()) - before if not path.name.startswith(".")}
    assert not left, f"these tests wrote {sorted(left)} into the repository"
