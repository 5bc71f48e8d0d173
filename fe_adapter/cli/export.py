"""``fe-adapter export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fe_adapter.cli.options import Run, Weights, words
from fe_adapter.errors import InputError
from fe_adapter.sharing.folder import find_model, load_classifier

EXAMPLES = ("fe-adapter export run model.onnx", "fe-adapter export run checkpoint.pth")


def export(
    *,
    run_folder: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="….onnx; or ….pth or ….safetensors, as of ST-Adapter.")],
    weights: Weights = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; default PyTorch's.")] = None,
) -> None:
    """Write a trained model for other programs.

    An ONNX file takes uint8 clips (B, T, 3, h, w) and gives logits and probabilities; it is tried in onnxruntime before
    it takes its place. A checkpoint of ST-Adapter holds static adapters and the head.
    """
    from fe_adapter.sharing.export import export_onnx
    from fe_adapter.sharing.st_adapter import save_st_adapter

    if out.suffix not in (".onnx", ".pth", ".safetensors"):
        raise InputError(f"{out} ends neither in .onnx nor, for ST-Adapter, in .pth or .safetensors")
    if opset is not None and out.suffix != ".onnx":
        raise InputError("--opset is of .onnx")
    model = load_classifier(find_model(run_folder), weights=weights)
    if out.suffix == ".onnx":
        export_onnx(model, out, opset=opset)
    else:
        save_st_adapter(model, out)
    words.print(f"written to {out}")
