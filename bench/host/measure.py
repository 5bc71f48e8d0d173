"""What layers and training steps cost the host, and how many launches and waits they make; run within `build`'s CUDA.

PyTorch believes in an H100: dispatcher, autograd, allocator, Triton's JIT and C launcher are the real ones, and so are
the launch plans; launches return at once and compute nothing. Times are CPU time of all threads, of contenders that
take turns: ratios within a run and counts mean something, microseconds and results do not.

    python -m bench.host.measure layer|step|fit  (by `python -m bench host`; prints JSON)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench.cases.rivals import STAdapter, no_convolution
from fe_adapter import FEAdapter, FusedFEAdapter

BASELINE = "st-adapter"
_NAMES = ("launches", "triton", "gemms", "memcpys", "memsets", "mallocs", "waits", "events", "refused", "captured")
Steps = dict[str, Callable[[], Any]]


def counts() -> dict[str, int]:
    """What was called since `reset`."""
    values = (ctypes.c_long * len(_NAMES))()
    ctypes.CDLL("libcuda.so.1").fake_counts(values)
    return dict(zip(_NAMES, values, strict=True))


def reset() -> None:
    """Count from here on."""
    ctypes.CDLL("libcuda.so.1").fake_reset()


def counted(step: Callable[[], Any], warm_up: int = 3) -> dict[str, int]:
    """The calls of one ``step()``, after some that compile and allocate."""
    for _ in range(warm_up):
        step()
    reset()
    step()
    return counts()


def table(steps: Steps, rounds: int, baseline: str = BASELINE) -> dict[str, dict[str, Any]]:
    """By name: the median of host times in µs, of the ratio to the baseline's in the same round, and the counts."""
    called = {name: counted(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, shuffle = list(steps), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    for turn in range(-3, rounds):
        shuffle(names)  # in a fixed order each would find in the caches what always the same one left there
        for name in names:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                times[name].append(time.process_time() - start)
    gc.enable()
    return {
        name: {
            "us": 1e6 * statistics.median(t),
            "ratio": statistics.median(a / b for a, b in zip(t, times[baseline], strict=True)),
            **{key: called[name][key] for key in ("launches", "waits", "refused")},
        }
        for name, t in times.items()
    }


def layer(rounds: int, num_clips: int = 8, T: int = 8, N: int = 196, D: int = 768, R: int = 384) -> dict[str, Any]:
    """Forward and backward of one layer, in bf16 and under autocast of an fp32 stream.

    Backward runs in the thread that calls it, as `fit` has it; and once as in a loop that does not ask for that, where
    each backward wakes another thread: a whole step pays that once, here every layer does.
    """
    found = {}
    for mode, is_threaded in itertools.product(("bf16", "autocast"), (False, True)):
        make: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16 if mode == "bf16" else torch.float32}
        plain = FEAdapter(D, R, num_frames=T, dilation=1, **make)
        layers: dict[str, nn.Module] = {
            "st-adapter": STAdapter(plain),
            "static": FusedFEAdapter(D, R, num_frames=T, dilation=1, **make),
            "dynamic": FusedFEAdapter(D, R, num_frames=T, dilation="dynamic", **make),
            "no convolution": no_convolution(plain),
        }
        x = torch.randn(num_clips * T, N + 1, D, **make).requires_grad_()
        dy = torch.randn_like(x)

        def step(module: nn.Module, x: torch.Tensor, dy: torch.Tensor, is_autocast: bool) -> None:
            module.zero_grad(set_to_none=True)
            x.grad = None
            with torch.autocast("cuda", torch.bfloat16, enabled=is_autocast):
                y = module(x.clone())  # which ST-Adapter changes in place
            y.backward(dy)

        steps: Steps = {
            name: lambda module=module, x=x, dy=dy, on=mode != "bf16": step(module, x, dy, on)  # type: ignore[misc]
            for name, module in layers.items()
        }
        with torch.autograd.set_multithreading_enabled(is_threaded):
            found[f"layer R={R}, {mode}{', backward in another thread' * is_threaded}"] = table(steps, rounds)
    return found


def step(rounds: int, vit: str = "ViT-B/16") -> dict[str, Any]:
    """A training step with AdamW, eager: the suite's own; under autocast, but for a backbone frozen in bf16."""
    from bench.cases.rivals import st_adapter

    net = _net(vit)
    contenders = {
        "full fine-tuning": net.contender(net.classifier(tune="full")),
        "st-adapter": net.contender(net.adapted(1, st_adapter)),
        "static": net.contender(net.adapted(1)),
        "dynamic": net.contender(net.adapted("dynamic")),
        "static, frozen in bf16": net.contender(net.frozen_in_bf16(1), is_autocast=False),
        "dynamic, frozen in bf16": net.contender(net.frozen_in_bf16("dynamic"), is_autocast=False),
    }
    steps: Steps = {name: functools.partial(contender.step, None) for name, contender in contenders.items()}
    return {f"step {vit} 8x8": table(steps, rounds)}


def fit(rounds: int, vit: str = "ViT-Ti/16") -> dict[str, Any]:
    """A step of `fe_adapter.train.fit`, captured and eager: its counts, on clips that are in memory."""
    from fe_adapter import FEAdapterConfig, VideoClassifier
    from fe_adapter.sharing import content
    from fe_adapter.train import TrainConfig, recipe
    from fe_adapter.train import fit as train
    from fe_adapter.train.step import Step

    content.check_finite = recipe._Run._check_finite = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    found, run, first = {}, Step.__call__, 10
    for capture in ("on", "off"):
        model = VideoClassifier(_build(vit), 7, config=FEAdapterConfig(dilation="dynamic"), num_frames=8)
        calls: list[dict[str, int]] = []

        def measured(*arguments: Any, calls: list[dict[str, int]] = calls) -> Any:
            calls.append(counts())
            if len(calls) == first:
                reset()
            if len(calls) == first + rounds:
                raise _Enough
            return run(*arguments)

        Step.__call__ = measured  # type: ignore[method-assign, assignment]
        config = TrainConfig(max_epochs=1, precision="bf16", capture=capture, tracker=None, num_workers=0)
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
            train(model, _Clips(8 * (first + rounds)), None, config, out=Path(folder, "run"), progress=False)
        keys = ("launches", "memcpys", "waits", "refused")
        found[f"capture={capture}"] = {key: calls[-1][key] / rounds for key in keys}
    return {f"fit {vit} 8x8": found}


class _Enough(Exception):  # noqa: N818 (it is no error)
    """All steps are counted. What would be saved after them has been computed by nobody."""


class _Clips:
    """A data set of one black clip, again and again, as `fe_adapter.data.protocol.ClipDataset` says."""

    class_names = tuple("0123456")
    sampler = transform = clip_seconds = None

    def __init__(self, size: int) -> None:
        self.labels = [i % 7 for i in range(size)]
        self.paths = [str(i) for i in range(size)]
        self._video = torch.zeros(8, 3, 224, 224, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"video": self._video, "label": self.labels[index], "index": index, "path": self.paths[index]}

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


def _net(vit: str) -> Any:
    """The suite's training step of 8 clips of 8 frames."""
    import timm

    from bench.cases.step import Net
    from bench.measure.case import Point

    timm.create_model = lambda *_, **__: _build(vit)
    return Net(Point({"vit": vit, "T": 8, "B": 8, "precision": "bf16"}, 1), torch.device("cuda"))


def _build(vit: str) -> nn.Module:
    """A ViT whose patches are made by a matrix product: what cuDNN answers about a convolution is not imitated."""
    import timm

    from bench.cases.step import VITS

    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    name, arguments = VITS[vit]
    with torch.device("cpu"):
        model: Any = timm.models.create_model(name, num_classes=0, **arguments)
    model, proj = model.to("cuda"), model.patch_embed.proj

    def patches(images: torch.Tensor) -> torch.Tensor:
        (b, c, h, w), s = images.shape, proj.weight.shape[-1]
        images = images.reshape(b, c, h // s, s, w // s, s).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * s * s)
        return F.linear(images, proj.weight.flatten(1), proj.bias)

    model.patch_embed.forward = patches
    return model


if __name__ == "__main__":
    case, how_often = sys.argv[1:]
    measure: Any = {"layer": layer, "step": step, "fit": fit}[case]
    print(json.dumps(measure(int(how_often))), flush=True)
    os._exit(0)  # PyTorch's threads for the imitated device do not always end in good order
