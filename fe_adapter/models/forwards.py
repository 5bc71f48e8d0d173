"""Modules that compute otherwise than their class says.

A module gets a subclass of its own class, made here, with another ``forward``; its parameters, its name and what it is
an instance of stay. Copies of it, deep or pickled, are independent of it, replicas of it on other devices run
themselves, and a graph that `torch.compile` has made of it is not used again, since that asks for the class. FSDP2 does
the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]  # (module, forward of its own class, *args, **kwargs)


def override_forward(module: nn.Module, forward: Forward) -> None:
    """Let ``module`` run ``forward(module, own, *args, **kwargs)``; ``own(module, …)`` is what it would have run."""
    cls: Any = type(module)
    module.__class__ = _subclass(cls, forward)


def restore_forward(module: nn.Module, forward: Forward) -> None:
    """Undo `override_forward`, if it is with ``forward`` that the module was overridden last."""
    cls = type(module)
    if _overridden_with(cls) is forward:
        assert cls.__base__ is not None
        module.__class__ = cls.__base__


def restore_forwards(module: nn.Module) -> None:
    """Undo every `override_forward` in ``module`` and all that is in it."""
    for part in module.modules():
        while (forward := _overridden_with(type(part))) is not None:
            restore_forward(part, forward)


def _overridden_with(cls: type) -> Forward | None:
    return cls.__dict__.get("_fe_forward")


@functools.cache
def _subclass(cls: Any, forward: Forward) -> Any:
    def overridden(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(module, cls.forward, *args, **kwargs)

    def reduce(module: nn.Module, protocol: Any) -> tuple:
        return _new, (cls, forward), cls.__reduce_ex__(module, protocol)[2]

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**names, "forward": overridden, "__reduce_ex__": reduce, "_fe_forward": forward})


def _new(cls: Any, forward: Forward) -> nn.Module:
    overridden = _subclass(cls, forward)
    return overridden.__new__(overridden)
