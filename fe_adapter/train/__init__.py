"""Training: one recipe, resumable bit for bit."""

from fe_adapter.train.config import TrainConfig
from fe_adapter.train.feature_cache import CachedFeatures, cache_features
from fe_adapter.train.recipe import TrainResult, fit

__all__ = [
    "CachedFeatures",
    "TrainConfig",
    "TrainResult",
    "cache_features",
    "fit",
]
