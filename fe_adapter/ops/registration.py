"""Operators registered with PyTorch at little cost to a call.

`torch.library.custom_op` does the same, but walks the arguments as trees and looks for aliases on every call: where the
kernels take some tens of microseconds, a step waits for that. Here the dispatcher calls the function itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = "fe_adapter"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(function: Callable, fake: Callable) -> Any:
    """The operator ``NAMESPACE::NAME``, which runs ``function`` on any device; its schema is in the annotations.

    ``function`` changes none of its arguments, and what it returns shares no memory with them.
    """
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register_autograd(operator: Any, differentiable: Callable) -> None:
    """Where a gradient may be asked for, call ``differentiable(below, *arguments)``.

    ``below(*arguments)`` runs ``operator`` without autograd, as `torch.autograd.Function.forward` is to do. A
    forward-mode derivative raises: by itself PyTorch would take it for zero.
    """

    def kernel(keys: Any, *arguments: Any) -> Any:
        def below(*arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

        if forward_ad._current_level >= 0 and _has_tangent(arguments):
            raise RuntimeError(
                "the fused adapter has no forward-mode derivative; FEAdapter, its plain PyTorch form, has"
            )
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return differentiable(below, *arguments)
        return below(*arguments)

    _LIBRARY.impl(operator._schema.name.partition("::")[2], kernel, "Autograd", with_keyset=True)


def _has_tangent(arguments: Iterable[Any]) -> bool:
    tensors = itertools.chain.from_iterable(z if isinstance(z, (list, tuple)) else (z,) for z in arguments)
    return any(isinstance(z, torch.Tensor) and forward_ad.unpack_dual(z).tangent is not None for z in tensors)
