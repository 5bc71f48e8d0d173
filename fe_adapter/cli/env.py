"""``fe-adapter env``."""

from __future__ import annotations

from fe_adapter.environment import describe_environment

EXAMPLES = ("fe-adapter env",)


def env() -> None:
    """Print versions, devices and backends, for a bug report."""
    for name, value in describe_environment().items():
        print(f"{name}: {value}")
