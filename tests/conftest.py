"""What must be so before any test imports PyTorch."""

import os

# the processes of -n share the cores: with threads of their own, which wait for each other, small products take ten
# times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_docs.py", "test_interpreter.py")


def pytest_collection_modifyitems(items):
    """What takes longest begins first, or one process would still be at it when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
