"""Turn a frozen image transformer into a video model: temporal adapters, trained on the GPU you already have."""

from fe_adapter.config import FEAdapterConfig
from fe_adapter.layers import FEAdapter, FusedFEAdapter
from fe_adapter.memory.estimate import estimate_memory
from fe_adapter.memory.plan import plan_memory
from fe_adapter.memory.policies import apply_memory_policy
from fe_adapter.models.adapt import (
    adapt,
    disable_adapters,
    print_trainable_parameters,
    set_num_frames,
    trainable_parameters,
    unadapt,
)
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.sharing.folder import load_adapter, load_classifier, save_adapter

__version__ = "0.1.0"

__all__ = [
    "FEAdapter",
    "FEAdapterConfig",
    "FusedFEAdapter",
    "VideoClassifier",
    "adapt",
    "apply_memory_policy",
    "disable_adapters",
    "estimate_memory",
    "load_adapter",
    "load_classifier",
    "plan_memory",
    "print_trainable_parameters",
    "save_adapter",
    "set_num_frames",
    "trainable_parameters",
    "unadapt",
]
