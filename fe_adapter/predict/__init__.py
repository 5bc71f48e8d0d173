"""What a classifier says about videos."""

from fe_adapter.predict.result import Prediction
from fe_adapter.predict.video import predict_video

__all__ = [
    "Prediction",
    "predict_video",
]
