"""Turn a frozen image transformer into a video model: temporal adapters, trained on the GPU you already have."""

from typing import TYPE_CHECKING, Any

from fe_adapter.config import FEAdapterConfig
from fe_adapter.layers import FEAdapter, FusedFEAdapter
from fe_adapter.memory import apply_memory_policy, estimate_memory, plan_memory
from fe_adapter.models import (
    VideoClassifier,
    active_adapter,
    adapt,
    add_adapter,
    delete_adapter,
    disable_adapters,
    list_adapters,
    print_trainable_parameters,
    set_adapter,
    set_num_frames,
    trainable_parameters,
    unadapt,
    use_adapters,
)
from fe_adapter.sharing import load_adapter, load_classifier, load_st_adapter, save_adapter

if TYPE_CHECKING:
    from fe_adapter.predict import StreamingClassifier, predict_video
    from fe_adapter.train import TrainConfig, fit

__version__ = "0.1.0"

__all__ = [
    "FEAdapter",
    "FEAdapterConfig",
    "FusedFEAdapter",
    "StreamingClassifier",
    "TrainConfig",
    "VideoClassifier",
    "active_adapter",
    "adapt",
    "add_adapter",
    "apply_memory_policy",
    "delete_adapter",
    "disable_adapters",
    "estimate_memory",
    "fit",
    "list_adapters",
    "load_adapter",
    "load_classifier",
    "load_st_adapter",
    "plan_memory",
    "predict_video",
    "print_trainable_parameters",
    "save_adapter",
    "set_adapter",
    "set_num_frames",
    "trainable_parameters",
    "unadapt",
    "use_adapters",
]

_AT_FIRST_USE = {  # they need more than torch
    "StreamingClassifier": "predict",
    "TrainConfig": "train",
    "fit": "train",
    "predict_video": "predict",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_AT_FIRST_USE[name]}"), name)
