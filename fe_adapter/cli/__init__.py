"""The command line ``fe-adapter``."""

from fe_adapter.cli.app import main

__all__ = ["main"]
