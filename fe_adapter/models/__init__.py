"""Adapters in a frozen image transformer, and the classifier around it."""

from fe_adapter.models.adaptation import (
    adapt,
    disable_adapters,
    get_adapters,
    print_trainable_parameters,
    set_num_frames,
    trainable_parameters,
    unadapt,
)
from fe_adapter.models.classifier import VideoClassifier

__all__ = [
    "VideoClassifier",
    "adapt",
    "disable_adapters",
    "get_adapters",
    "print_trainable_parameters",
    "set_num_frames",
    "trainable_parameters",
    "unadapt",
]
