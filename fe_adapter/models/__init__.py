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
from fe_adapter.models.named import (
    active_adapter,
    add_adapter,
    delete_adapter,
    list_adapters,
    set_adapter,
    use_adapters,
)

__all__ = [
    "VideoClassifier",
    "active_adapter",
    "adapt",
    "add_adapter",
    "delete_adapter",
    "disable_adapters",
    "get_adapters",
    "list_adapters",
    "print_trainable_parameters",
    "set_adapter",
    "set_num_frames",
    "trainable_parameters",
    "unadapt",
    "use_adapters",
]
