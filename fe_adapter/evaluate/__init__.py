"""A classifier tested on labelled videos."""

from fe_adapter.evaluate.folds import FoldSummary
from fe_adapter.evaluate.metrics import Metrics, confusion_matrix
from fe_adapter.evaluate.run import Evaluation, evaluate

__all__ = [
    "Evaluation",
    "FoldSummary",
    "Metrics",
    "confusion_matrix",
    "evaluate",
]
