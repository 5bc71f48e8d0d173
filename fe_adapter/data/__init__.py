"""Videos, clips and data sets."""

from fe_adapter.data.datasets import VideoCSV, VideoDataset, VideoFolder, open_dataset
from fe_adapter.data.faces import Face, FaceRecipe, FaceTracker, crop_face, crop_to_faces, load_detector
from fe_adapter.data.feed import Feed
from fe_adapter.data.listing import Clip
from fe_adapter.data.live import stream_frames
from fe_adapter.data.loader import make_loader
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.data.reading import probe, read_frames
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.data.sampling import FrameSampler, sliding_windows
from fe_adapter.data.transforms import EvalTransform, TrainTransform
from fe_adapter.data.video import VideoInfo
from fe_adapter.data.views import MultiView, Views

__all__ = [
    "Clip",
    "ClipDataset",
    "ClipRecipe",
    "EvalTransform",
    "Face",
    "FaceRecipe",
    "FaceTracker",
    "Feed",
    "FrameSampler",
    "MultiView",
    "TrainTransform",
    "VideoCSV",
    "VideoDataset",
    "VideoFolder",
    "VideoInfo",
    "Views",
    "crop_face",
    "crop_to_faces",
    "load_detector",
    "make_loader",
    "open_dataset",
    "probe",
    "read_frames",
    "sliding_windows",
    "stream_frames",
]
