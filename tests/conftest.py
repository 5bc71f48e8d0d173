"""What must be so before any test imports PyTorch."""

import os

# the processes of -n share the cores: with threads of their own, which wait for each other, small products take ten
# times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
