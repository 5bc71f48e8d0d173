"""Frozen weights in fewer bits: bfloat16, or eight and four bits, packed by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fe_adapter.errors import InputError
from fe_adapter.layers import FEAdapter
from fe_adapter.libraries import import_quietly, require
from fe_adapter.models.origin import rounding

QUANTIZED = ("int8", "nf4")
_BLOCK = 64  # elements of nf4 that share a scale


def convert(vit: nn.Module, kind: str) -> None:
    """Store the frozen weights of ``vit`` as ``kind``, in place: "bf16", "int8" or "nf4". Adapters stay as they are.

    ``int8`` and ``nf4`` are for the linear layers' weights alone; products are taken in the dtype of their input.
    Modules with a ``q_bias`` (attention of timm's EVA and BEiT) stay as they are: they take the product of the bare
    weight themselves, and autograd would keep the unpacked one for backward.
    """
    frozen = _frozen(vit)
    with rounding(vit):
        for module in frozen:
            if kind == "bf16":
                _to_bfloat16(module)
                continue
            if getattr(module, "q_bias", None) is not None:
                continue
            for name, child in module.named_children():
                if type(child) is nn.Linear and child in frozen:
                    setattr(module, name, PackedLinear(child, kind))


def check(vit: nn.Module, kind: str) -> None:
    """Raise `InputError` where `convert` could not: the backbone trains, or bitsandbytes is not installed."""
    if any(p.requires_grad for module in _frozen(vit) for p in module.parameters(recurse=False)):
        raise InputError(
            f"memory policy {kind!r} is for frozen weights, but the backbone trains (before adapt it does, too)"
        )
    packed = {module.kind for module in vit.modules() if isinstance(module, PackedLinear)}
    if kind in QUANTIZED and packed - {kind}:
        raise InputError(f"memory policy {kind!r}: the weights are {packed.pop()} already")
    if kind in QUANTIZED:
        require("bitsandbytes", f"memory policy {kind!r}", "quantize")


def kinds_of(vit: nn.Module) -> list[str]:
    """What `convert` would have to be told to store the frozen weights of a plain ``vit`` as those of this one are."""
    frozen = _frozen(vit)
    packed = {module.kind for module in frozen if isinstance(module, PackedLinear)}
    others = (p for module in frozen if not isinstance(module, PackedLinear) for p in module.parameters(recurse=False))
    is_bf16 = any(p.dtype == torch.bfloat16 and not p.requires_grad for p in others)
    return [*(["bf16"] if is_bf16 else []), *sorted(packed)]


def describe_storage(vit: nn.Module) -> str:
    """How the frozen weights of ``vit`` are stored: ``"float32"``, ``"bfloat16, float32, nf4"``."""
    frozen = _frozen(vit)
    kinds = {module.kind for module in frozen if isinstance(module, PackedLinear)}
    dtypes = {
        str(p.dtype).removeprefix("torch.")
        for module in frozen
        if not isinstance(module, PackedLinear)
        for p in module.parameters(recurse=False)
    }
    return ", ".join(sorted(kinds | dtypes))


class PackedLinear(nn.Module):
    """A frozen linear layer whose weight stays packed, and is unpacked for each product.

    Its state dict is that of the linear layer, ``weight`` and ``bias``: what one saves the other loads.

    bitsandbytes' own layers are not used: the eight-bit one keeps its input for backward, and with it six tensors of a
    block's width that a frozen block need not keep.

    Args:
        linear: whose weight, of shape (out, in), is packed, on its device.
        kind: "int8", a scale per row; or "nf4", a scale per 64 elements (QLoRA, arXiv 2305.14314).
    """

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.shape, self.dtype, self.bias = kind, linear.weight.shape, linear.weight.dtype, linear.bias
        packed, scale = _pack(linear.weight.data, kind)
        # parameters, since DistributedDataParallel sends buffers around in every step
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The unpacked weight in the dtype that it had, for models that ask for it."""
        return _unpack(self.packed, self.scale, self.kind, self.shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y: Tensor = _PackedProduct.apply(x, self.packed, self.scale, bias, self.kind, self.shape)
        return y

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._linear()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        linear = self._linear()
        before = linear.weight.clone()
        linear._load_from_state_dict(state_dict, prefix, *args)  # keys and shapes are refused as nn.Linear's are
        self.bias, self.dtype = linear.bias, linear.weight.dtype
        if not torch.equal(linear.weight, before):
            packed, scale = _pack(linear.weight.data, self.kind)
            self.packed.data, self.scale.data = packed, scale

    def _linear(self) -> nn.Linear:
        """The linear layer with the unpacked weight, which is its own, and the bias, which is shared."""
        linear = nn.Linear(self.shape[1], self.shape[0], bias=False, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.weight, requires_grad=False), self.bias
        return linear

    def __setstate__(self, state: dict[str, Any]) -> None:
        import_quietly("bitsandbytes")  # it registers the operator that unpacks
        super().__setstate__(state)

    def extra_repr(self) -> str:
        return f"in_features={self.shape[1]}, out_features={self.shape[0]}, kind={self.kind}"


class _PackedProduct(torch.autograd.Function):
    """``x Wᵀ + b``; for backward it keeps the packed weight, which is there anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, kind: str, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.kind, ctx.shape = kind, shape
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, _unpack(packed, scale, kind, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            packed, scale = ctx.saved_tensors
            dx = dy @ _unpack(packed, scale, ctx.kind, ctx.shape, dy.dtype)
        return dx, None, None, None, None, None


def _pack(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    bnb = import_quietly("bitsandbytes.functional")
    if kind == "int8":
        packed, scale, _ = bnb.int8_vectorwise_quant(weight.half())
        return packed, scale / 127
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
    return packed, state.absmax


def _unpack(packed: Tensor, scale: Tensor, kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if kind == "int8":
        # in place: a product of two dtypes makes a hidden copy of `packed` in fp32 on a CPU
        return packed.to(torch.float32).mul_(scale[:, None]).to(dtype)
    # a scale to a row: on a CPU bitsandbytes 0.50 counts the scales of each row anew
    rows = shape.numel() // _BLOCK if shape.numel() % _BLOCK == 0 else 1
    flat = (rows, shape.numel() // rows)
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scale, _BLOCK, "nf4", flat, dtype).view(shape)


def _frozen(vit: nn.Module) -> dict[nn.Module, None]:
    """The modules of ``vit`` that belong to no adapter, in its order."""
    adapters = [module for module in vit.modules() if isinstance(module, FEAdapter)]
    of_adapters = {module for adapter in adapters for module in adapter.modules()}
    return {module: None for module in vit.modules() if module not in of_adapters}


def _to_bfloat16(module: nn.Module) -> None:
    if isinstance(module, PackedLinear):
        module.dtype = torch.bfloat16
    for name, p in module.named_parameters(recurse=False):
        if p.is_floating_point() and not (isinstance(module, PackedLinear) and name == "scale"):
            p.data = p.data.to(torch.bfloat16)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module._buffers[name] = buffer.to(torch.bfloat16)
