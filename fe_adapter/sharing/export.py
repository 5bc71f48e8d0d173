"""A classifier as an ONNX file, for runtimes without PyTorch."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe_adapter.backbones.backbone import unwrapped
from fe_adapter.checks import check_count
from fe_adapter.errors import InputError, in_one_line
from fe_adapter.files import check_folder, make_folder
from fe_adapter.layers import FEAdapter
from fe_adapter.libraries import quiet, require
from fe_adapter.memory import apply_memory_policy, frozen_weights
from fe_adapter.models.adaptation import get_adapters
from fe_adapter.models.classifier import VideoClassifier

INPUT, OUTPUTS = "video", ("logits", "probabilities")
MIN_OPSET, MAX_OPSET = 18, 23
_CLOSE = 1e-3  # of the largest logit: sums of some thousand terms in another order, in fp32
_BATCHES = (1, 3)  # on which the file is tried


def export_onnx(model: nn.Module, path: Path | str, *, opset: int | None = None) -> None:
    """Write ``model`` as ONNX, and hold it against itself in onnxruntime.

    The graph takes ``video``, uint8 ``(B, T, 3, h, w)`` of any B, in RGB, and normalizes it itself; it gives ``logits``
    and ``probabilities`` ``(B, C)``, of which the latter are divided by the model's temperature. Adapters are there as
    their equations in plain operators, in fp32. Class names, frames and sizes are in the file's metadata.

    Args:
        model: a `VideoClassifier`; it stays as it is. Of several adapters the active one is exported.
        path: ``….onnx``; weights of 2 GB and more lie beside it in ``….onnx.data``.
        opset: of ONNX; None is PyTorch's default.

    Raises:
        InputError: ``model`` is another one, or holds what ONNX has no operators for; onnx, onnxscript or onnxruntime
            is not installed; the file cannot be written; or it gives other logits.
    """
    path, inner = Path(path), unwrapped(model)
    if path.suffix != ".onnx":
        raise InputError(f"{path} does not end in .onnx")
    if not isinstance(inner, VideoClassifier):
        raise InputError(f"what is exported is a VideoClassifier; got a {type(inner).__name__}")
    if inner.names is not None:
        raise InputError("the clips of this model have adapters of their own (use_adapters); export one of them")
    if opset is not None:
        check_count("opset", opset, MIN_OPSET, MAX_OPSET)
    if kinds := set(frozen_weights.kinds_of(inner.vit)) - {"bf16"}:
        raise InputError(f"weights in {', '.join(sorted(kinds))} have no operators in ONNX; load the model without")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export to ONNX", "export")
    check_folder(path.parent)
    make_folder(path.parent)
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".")
    except OSError as error:
        raise InputError(f"cannot write into {path.parent}: {error.strerror or error}") from None
    with folder as name:
        written = Path(name, path.name)
        exported = _Exported(_plain(inner))
        _write(exported, inner, written, opset)
        _check(written, exported, inner)
        for file in sorted(Path(name).iterdir(), key=lambda file: file == written):  # the graph last of all
            file.replace(path.parent / file.name)


def _write(exported: _Exported, model: VideoClassifier, file: Path, opset: int | None) -> None:
    with _quietly("PyTorch cannot export this model to ONNX"):
        program: Any = torch.onnx.export(
            exported,
            (_clips(model, _BATCHES[-1]),),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=2**16)}},
            verbose=False,
        )
        program.model.metadata_props.update(_metadata(model))
        program.save(str(file), external_data=sum(p.nbytes for p in exported.parameters()) >= 2**31 - 2**24)


class _Exported(nn.Module):
    """What the graph computes."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(video)
        return logits, (logits / self.model.temperature).softmax(-1)


def _plain(model: VideoClassifier) -> VideoClassifier:
    """A copy on the CPU, in fp32 and evaluation mode, without memory policies, whose adapters are plain PyTorch."""
    plain = copy.deepcopy(model).cpu().float().eval()
    apply_memory_policy(plain, "none")
    for adapter in get_adapters(plain) if plain.tune == "adapter" else ():
        adapter.__class__ = FEAdapter
    return plain.requires_grad_(False)


def _clips(model: VideoClassifier, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch_size)
    shape = (batch_size, model.num_frames, 3, *model.preprocessing.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _metadata(model: VideoClassifier) -> dict[str, str]:
    height, width = model.preprocessing.size
    about = {
        "class_names": list(model.class_names), "num_frames": model.num_frames, "height": height, "width": width,
        "temperature": model.temperature, "clip_seconds": model.clip_seconds, "faces": model.faces,
    }  # fmt: skip
    return {f"fe_adapter.{name}": json.dumps(value) for name, value in about.items()}


def _check(file: Path, exported: _Exported, model: VideoClassifier) -> None:
    import onnxruntime

    with _quietly("onnxruntime cannot run what was exported"):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for batch_size in _BATCHES:
            video = _clips(model, batch_size)
            logits = torch.from_numpy(session.run([OUTPUTS[0]], {INPUT: video.numpy()})[0])
            with torch.no_grad():
                expected = exported(video)[0]
            off = (logits - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
            if not off <= _CLOSE:
                raise InputError(f"what was exported gives other logits: off by {off:.1e} of the largest; not written")


@contextlib.contextmanager
def _quietly(what: str) -> Iterator[None]:
    """As `in_one_line`, and of what the exporter says meanwhile nothing."""
    with in_one_line(what), quiet("onnxscript"), quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
