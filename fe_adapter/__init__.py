"""Turn a frozen image transformer into a video model: temporal adapters, trained on the GPU you already have."""

from fe_adapter.config import FEAdapterConfig
from fe_adapter.layers import FEAdapter, FusedFEAdapter
from fe_adapter.memory import estimate_memory

__version__ = "0.1.0"

__all__ = ["FEAdapter", "FEAdapterConfig", "FusedFEAdapter", "estimate_memory"]
