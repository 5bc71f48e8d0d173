"""What a classifier says about videos and streams."""

from fe_adapter.predict.annotate import write_annotated
from fe_adapter.predict.result import Prediction
from fe_adapter.predict.stream import StreamingClassifier
from fe_adapter.predict.video import predict_video

__all__ = [
    "Prediction",
    "StreamingClassifier",
    "predict_video",
    "write_annotated",
]
