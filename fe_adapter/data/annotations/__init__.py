"""Time ranges that somebody marked in videos, and the clips that are cut from them."""

from fe_adapter.data.annotations.formats import Range, is_annotation, read_ranges
from fe_adapter.data.annotations.windows import Cutting, cut, marks_of

__all__ = ["Cutting", "Range", "cut", "is_annotation", "marks_of", "read_ranges"]
