"""One training step of a ViT on clips: adapters against full fine-tuning, LoRA and two probes of frozen features.

Forward, backward and AdamW, on random weights and random uint8 clips; adapters of the default width, R = D/2, before
every self-attention.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases.rivals import no_convolution, st_adapter
from bench.cases.work import common_name, compiled, graph_and_peak
from bench.measure.case import Point, Provider
from bench.measure.harness import Contender
from bench.measure.worker import peak_rss
from bench.proof.agreement import settle_dilation
from fe_adapter import FEAdapter, FEAdapterConfig, VideoClassifier, apply_memory_policy, estimate_memory
from fe_adapter.memory.measure import measure_peak_memory
from fe_adapter.models.adaptation import get_adapters, trainable_parameters

BASELINE = "full fine-tuning"
FEW = ("full fine-tuning", "LoRA", "static")  # where a step takes many seconds
DILATIONS: dict[str, int | str] = {"st-adapter": 1, "static": 1, "dynamic": "dynamic"}  # of those with adapters
ROLES = {"static": "ours", "dynamic": "ours"} | dict.fromkeys(
    ("no convolution", "linear probe", "attention probe"), "floor"
)
NUM_CLASSES = 7
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-S/16": ("vit_small_patch16_224", {}),
    "ViT-B/16": ("vit_base_patch16_224", {}),
    "ViT-L/16": ("vit_large_patch16_224", {}),
    "ViT-Ti/16": ("vit_tiny_patch16_224", {}),
    "tiny": ("vit_tiny_patch16_224", {"img_size": 48, "embed_dim": 48, "num_heads": 3, "depth": 2}),
}


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [_point("tiny", T=4, B=1, rounds=3)]
    if device.type == "cpu":
        return [
            _point("ViT-S/16", T=8, B=2, rounds=15, thorough=True),
            _point("ViT-S/16", T=8, B=1, rounds=3),
            _point("ViT-S/16", T=16, B=1, rounds=3, only=(*FEW, "dynamic")),
            _point("ViT-S/16", T=32, B=1, rounds=3, only=FEW),
            _point("ViT-B/16", T=8, B=1, rounds=3, only=FEW),
            _point("ViT-L/16", T=8, B=1, rounds=2, only=("full fine-tuning", "static")),
        ]
    main = [_point("ViT-B/16", T=8, B=B, rounds=15, precision="bf16", thorough=True) for B in (8, 1)]
    sizes = [("ViT-B/16", 16, 8), ("ViT-S/16", 8, 8), ("ViT-L/16", 8, 8), ("ViT-B/16", 32, 8), ("ViT-B/16", 8, 32)]
    sizes += [(vit, T, 8) for vit in ("ViT-S/16", "ViT-L/16") for T in (16, 32)]
    return main + [_point(vit, T, B, rounds=15, precision="bf16") for vit, T, B in sizes]


def _point(vit: str, T: int, B: int, rounds: int, precision: str = "no", **options: Any) -> Point:
    return Point({"vit": vit, "T": T, "B": B, "precision": precision}, rounds, warmup=1, **options)


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    net = Net(point, device)
    made: dict[str, Callable[[], Any]] = {
        "full fine-tuning": partial(net.classifier, tune="full"),
        "LoRA": net.lora,
        "st-adapter": partial(net.adapted, 1, st_adapter),
        "static": partial(net.adapted, 1),
        "dynamic": partial(net.adapted, "dynamic"),
        "no convolution": partial(net.adapted, 1, no_convolution),
        "linear probe": partial(net.classifier, tune="head"),
        "attention probe": partial(net.classifier, tune="head", temporal_pool="attention"),
    }

    def eager(name: str) -> Contender:
        model = made[name]()
        return net.checked_contender(model, DILATIONS[name]) if name in DILATIONS else net.contender(model)

    found = {name: Provider(partial(eager, name), ROLES.get(name, "rival")) for name in made}
    if device.type == "cuda":
        found["static, frozen in bf16"] = Provider(
            lambda: net.contender(net.frozen_in_bf16(1), is_autocast=False), "ours"
        )
    if point.thorough and device.type == "cpu":
        found |= {name: _with_rss(found[name], point, name) for name in FEW}
    elif device.type == "cuda":
        if point.thorough:
            torch._dynamo.reset()  # what other points compiled counts towards its limit
        for name, make in made.items():
            if name == "no convolution":
                continue
            found[f"{name} graphed"] = Provider(partial(net.graphed_contender, make), found[name].role)
            if point.thorough and name in ("full fine-tuning", "static"):  # which takes up to a minute
                found[f"{name} compiled"] = Provider(partial(net.compiled_contender, make), found[name].role)
    return found


class Net:
    """The classifiers of one point, and steps of them."""

    def __init__(self, point: Point, device: torch.device) -> None:
        self.point, self.device, self.precision = point, device, point["precision"]
        shape = (point["B"], point["T"], 3, *(2 * (VITS[point["vit"]][1].get("img_size", 224),)))
        self.video = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.labels = torch.randint(NUM_CLASSES, (point["B"],), device=device)
        self._plain: dict[int | str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def classifier(self, **options: Any) -> VideoClassifier:
        """A classifier, the same weights every time."""
        import timm

        torch.manual_seed(0)
        name, arguments = VITS[self.point["vit"]]
        with self.device:
            vit = timm.create_model(name, num_classes=0, **arguments)
            return VideoClassifier(vit, NUM_CLASSES, num_frames=self.point["T"], **options).train()

    def lora(self) -> nn.Module:
        from peft import LoraConfig, inject_adapter_in_model

        model = self.classifier(tune="head")
        model.vit = inject_adapter_in_model(LoraConfig(r=16, target_modules=r".*\.attn\.(qkv|proj)"), model.vit)
        return model

    def adapted(self, dilation: int | str, replace: Callable[[FEAdapter], nn.Module] | None = None) -> VideoClassifier:
        """A classifier with adapters that are no longer the identity, or with what ``replace`` makes of them."""
        model = self.classifier(config=FEAdapterConfig(dilation=dilation))
        for adapter in get_adapters(model):
            nn.init.normal_(adapter.temporal_conv.weight)
            settle_dilation(adapter)
        if replace is not None:
            blocks: Any = model.vit.blocks
            for block in blocks:
                block.fe_adapter = replace(block.fe_adapter)
        return model

    def frozen_in_bf16(self, dilation: int | str) -> VideoClassifier:
        """`adapted` with memory policy ``bf16``, which trains without autocast."""
        model = self.adapted(dilation)
        apply_memory_policy(model, "bf16")
        return model

    def contender(
        self, model: nn.Module, check: Callable[[], None] | None = None, is_autocast: bool = True
    ) -> Contender:
        """A step of ``model``; unless ``check`` says otherwise, every gradient it needs must be there and finite."""
        optimizer = torch.optim.AdamW(trainable_parameters(model))

        def step(_: object) -> None:
            self.loss(model, is_autocast).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def memory() -> dict[str, int]:
            peak = {"peak": self._held(model, optimizer) + measure_peak_memory(partial(step, None))}
            if not isinstance(model, VideoClassifier):  # compiled: no fake tensors
                return peak
            precision = self.precision if is_autocast else "no"
            estimate = estimate_memory(model, *self.video.shape, dtype=self.video.dtype, precision=precision)
            return {"saved": estimate.saved, "estimated peak": estimate.peak, **peak}

        return Contender(step, check=check or partial(self._check_gradients, model, is_autocast), memory=memory)

    def checked_contender(self, model: VideoClassifier, dilation: int | str) -> Contender:
        """A step of ``model``, whose logits and gradients must be those of adapters in plain PyTorch."""
        return self.contender(model, partial(self._check_results, model, dilation))

    def compiled_contender(self, make: Callable[[], nn.Module]) -> Contender:
        """A step of what ``make`` makes, by `torch.compile`."""
        return self.contender(compiled(make()))

    def graphed_contender(self, make: Callable[[], nn.Module]) -> Contender:
        """A step of what ``make`` makes, as one CUDA graph, whose gradients are those of the same step without it."""
        model = make()
        parameters = list(trainable_parameters(model))
        optimizer = torch.optim.AdamW(parameters, capturable=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            self.loss(model).backward()
            optimizer.step()

        graphed, peak = graph_and_peak(step)
        gradients = [p.grad for p in parameters if p.grad is not None]  # where a replay leaves them

        def check() -> None:
            expected = _flat(
                torch.autograd.grad(self.loss(model), parameters)
            )  # before the replay moves the parameters
            graphed(None)
            error, norm = (_flat(gradients) - expected).norm(), expected.norm()
            allowed = torch.finfo(torch.bfloat16 if self.precision == "bf16" else torch.float32).eps
            assert error <= allowed * norm, f"a graph's gradients are off by {error / norm:.1e} of their norm"

        return Contender(graphed, check=check, memory=lambda: {"peak": self._held(model, optimizer) + peak})

    def _held(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Bytes of what is there between steps: the model, the optimizer's state, the clips."""
        state = [value for values in optimizer.state.values() for value in values.values()]
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *state, self.video))

    def loss(self, model: nn.Module, is_autocast: bool = True) -> Tensor:
        """The cross entropy; ``is_autocast``: in the precision of the point, else in that of the weights."""
        with self.autocast() if is_autocast else nullcontext():
            logits = model(self.video)
        return F.cross_entropy(logits.float(), self.labels)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _check_gradients(self, model: nn.Module, is_autocast: bool) -> None:
        self.loss(model, is_autocast).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (
                f"{name} has a gradient it should not, or none"
            )
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), (
                f"the gradient of {name} is not finite"
            )
        model.zero_grad(set_to_none=True)

    def _check_results(self, model: VideoClassifier, dilation: int | str) -> None:
        """At most twice the error of plain adapters in the same precision, against float64; on one clip."""
        exact, expected = self._plain_results(dilation)
        with self.autocast():
            actual = self._results(model)
        for name, value in exact.items():
            floor = torch.finfo(torch.float32).eps * value.norm()
            error, allowed = ((found[name] - value).norm() for found in (actual, expected))
            assert error <= 2 * allowed + floor, f"{name}: {error / allowed:.1f} times the error of plain adapters"

    def _plain_results(self, dilation: int | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Results of adapters in plain PyTorch: in float64, and in the precision of the point."""
        if dilation not in self._plain:
            plain = self.plainly_adapted(dilation)
            exact = self._results(copy.deepcopy(plain).double())
            with self.autocast():
                self._plain[dilation] = exact, self._results(plain)
        return self._plain[dilation]

    def plainly_adapted(self, dilation: int | str) -> VideoClassifier:
        """A classifier with the parameters of `adapted`, computed by plain PyTorch."""
        plain = self.adapted(dilation)
        for adapter in get_adapters(plain):
            adapter.__class__ = FEAdapter
        return plain

    def _results(self, model: VideoClassifier) -> dict[str, Tensor]:
        """Logits and all gradients of a clip, in float64; of a long clip its first eight frames."""
        num_frames = min(8, self.point["T"])
        before = {module: module.num_frames for module in model.modules() if hasattr(module, "num_frames")}
        for module in before:
            module.num_frames = num_frames
        logits = model(self.video[:1, :num_frames])
        F.cross_entropy(logits, self.labels[:1]).backward()
        gradients = {common_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        for module, frames in before.items():
            module.num_frames = frames
        gathered = _flat([gradients[name] for name in sorted(gradients)])
        return {"logits": logits.detach().double(), "gradients": gathered}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _with_rss(provider: Provider, point: Point, name: str) -> Provider:
    """``provider``, whose memory is also that of a process in which nothing else runs."""

    def build() -> Contender:
        contender = provider.build()
        memory = contender.memory
        return dataclasses.replace(contender, memory=lambda: memory() | {"rss": peak_rss("step", str(point), name)})

    return Provider(build, provider.role)
