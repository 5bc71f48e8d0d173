"""Faces in videos: found, followed from frame to frame, and cut out alike for training and for prediction."""

from fe_adapter.data.faces.clips import crop_to_faces
from fe_adapter.data.faces.detectors import Detector, load_detector
from fe_adapter.data.faces.face import Face, FaceRecipe, crop_face
from fe_adapter.data.faces.options import FaceOptions, other_than_trained
from fe_adapter.data.faces.tracking import FaceTracker

__all__ = [
    "Detector",
    "Face",
    "FaceOptions",
    "FaceRecipe",
    "FaceTracker",
    "crop_face",
    "crop_to_faces",
    "load_detector",
    "other_than_trained",
]
