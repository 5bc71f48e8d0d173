"""Adapters as folders: written, read, and taken over from and handed to ST-Adapter."""

from fe_adapter.sharing.folder import load_adapter, load_classifier, save_adapter
from fe_adapter.sharing.st_adapter import load_st_adapter, save_st_adapter

__all__ = [
    "load_adapter",
    "load_classifier",
    "load_st_adapter",
    "save_adapter",
    "save_st_adapter",
]
