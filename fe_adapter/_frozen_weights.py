"""Frozen weights in fewer bits: bfloat16, or bitsandbytes' eight and four."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from fe_adapter.errors import InputError
from fe_adapter.layers import FEAdapter

QUANTIZED = ("int8", "nf4")


def convert(vit: nn.Module, kind: str) -> None:
    """Store the frozen weights of ``vit`` as ``kind``, in place: "bf16", "int8" or "nf4". Adapters stay as they are.

    ``int8`` and ``nf4`` are for the linear layers' weights alone; products are taken in the dtype of their input.
    """
    frozen = _frozen(vit)
    for module in frozen:
        if kind == "bf16":
            _to_bfloat16(module)
            continue
        for name, child in module.named_children():
            if type(child) is nn.Linear and child in frozen:
                setattr(module, name, _quantized(child, kind))


def check(vit: nn.Module, kind: str) -> None:
    """Raise `InputError` where `convert` could not: the backbone trains, or bitsandbytes is not installed."""
    if any(p.requires_grad for module in _frozen(vit) for p in module.parameters(recurse=False)):
        raise InputError(
            f"memory policy {kind!r} is for frozen weights, but the backbone trains (before adapt it does, too)"
        )
    if kind in QUANTIZED and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"memory policy {kind!r} needs bitsandbytes; pip install 'fe-adapter[quantize]'")


def _frozen(vit: nn.Module) -> dict[nn.Module, None]:
    """The modules of ``vit`` that belong to no adapter, in its order."""
    adapters = [module for module in vit.modules() if isinstance(module, FEAdapter)]
    of_adapters = {module for adapter in adapters for module in adapter.modules()}
    return {module: None for module in vit.modules() if module not in of_adapters}


def _to_bfloat16(module: nn.Module) -> None:
    for p in module.parameters(recurse=False):
        if p.is_floating_point():
            p.data = p.data.to(torch.bfloat16)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module._buffers[name] = buffer.to(torch.bfloat16)


def _quantized(linear: nn.Linear, kind: str) -> nn.Module:
    import bitsandbytes as bnb

    shape: dict[str, Any] = {"bias": linear.bias is not None, "device": "meta"}
    weight, device = linear.weight.data.cpu(), linear.weight.device
    layer: Any
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False, **shape)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, quant_type="nf4", **shape)
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer.bias = linear.bias
    return layer.to(device)  # quantizes
