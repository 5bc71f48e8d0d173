"""Which memory policy fits a budget, and what it costs: `fe-adapter plan`, and ``train --memory``."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fe_adapter.backbones.backbone import get_blocks
from fe_adapter.checks import check_choice, check_count
from fe_adapter.errors import InputError
from fe_adapter.files import new_figure, write_figure
from fe_adapter.memory.cost import captured_seconds, cpu_cost, eager_seconds
from fe_adapter.memory.estimate import MemoryEstimate, copy_without_values, estimate_memory
from fe_adapter.memory.policies import (
    APPROXIMATE,
    apply_memory_policy,
    check_memory_policy,
    is_in_bf16,
    needs_host,
    parse_policy,
)
from fe_adapter.models.adaptation import adapt, get_adaptation, unadapt
from fe_adapter.models.blocks import get_state
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.models.inference import PRECISIONS
from fe_adapter.models.prefix import prefix_tokens
from fe_adapter.ops.gelu2bit import kind_of_gelu

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SMALLEST = "recompute_input+full"  # of the exact ones that stay on the device
FULL_TUNING = "full fine-tuning"


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One way to train, and what it would take.

    Args:
        name: for people: the policy, or what else is different.
        policy: as of `apply_memory_policy`; None for full fine-tuning and for other models than the one asked about.
        precision: of autocast; "no" where the policy itself has the backbone in bf16.
        estimate: memory and work of a step.
        is_captured: whether the step runs as a CUDA graph (`TrainConfig.capture`), or else launch by launch.
        relative_cost: of such a step; that of full fine-tuning, run the same way where it can be, is 1.
        eager_cost: launch by launch, in the same unit.
    """

    name: str
    policy: str | None
    precision: str
    estimate: MemoryEstimate
    is_captured: bool
    relative_cost: float
    eager_cost: float

    @property
    def peak(self) -> int:
        """Bytes, those of the graph's pool included where there is one."""
        return self.estimate.captured_peak if self.is_captured else self.estimate.peak

    def eagerly(self) -> PlanRow:
        """The same launch by launch: slower at most, and smaller, without a pool of the graph's own."""
        if not self.is_captured:
            return self
        name = f"{self.name}, not captured"
        return dataclasses.replace(self, name=name, is_captured=False, relative_cost=self.eager_cost)

    @property
    def is_exact(self) -> bool:
        """Whether the gradients are those of the model, up to rounding."""
        return self.policy is None or is_exact(self.policy)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The ways to train a model, full fine-tuning first, and the choice among them."""

    rows: tuple[PlanRow, ...]
    budget: int | None
    recommended: PlanRow | None  # None: nothing fits
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON; sizes in bytes."""
        chosen = None if self.recommended is None else self.recommended.name
        return {"budget": self.budget, "recommended": chosen, "advice": self.advice,
                "rows": [dataclasses.asdict(row) | {"peak": row.peak} for row in self.rows]}  # fmt: skip

    def pick(self, budget: int | None, approximate: bool = False, only_captured: bool = False) -> PlanRow | None:
        """The cheapest policy whose peak is within ``budget`` bytes, of equals the smallest; None if there is none.

        Where a graph does not fit, its steps may still fit launch by launch, but with ``only_captured``.
        """
        ours = [row for row in self.rows if row.policy is not None and (row.is_exact or approximate)]
        captured = [row for row in ours if row.is_captured]
        ways = captured if only_captured else [*ours, *(row.eagerly() for row in captured)]
        fitting = [row for row in ways if budget is None or row.peak <= budget]
        return min(fitting, key=lambda row: (row.relative_cost, row.peak), default=None)

    def is_dominated(self, row: PlanRow) -> bool:
        """Whether another policy, as exact, takes no more time and no more memory, and less of one."""
        mine = row.relative_cost, row.peak
        others = [other for other in self.rows if other.policy is not None and other.is_exact >= row.is_exact]
        costs = [(other.relative_cost, other.peak) for other in others]
        return any(cost != mine and cost[0] <= mine[0] and cost[1] <= mine[1] for cost in costs)

    def find(self, policy: str, precision: str) -> PlanRow | None:
        """The row of that policy, if it is one of the plan's."""
        return next((row for row in self.rows if (row.policy, row.precision) == (policy, precision)), None)

    def smaller(self, row: PlanRow) -> PlanRow | None:
        """The cheapest policy that needs less than ``row``, in the same precision; None if there is none."""
        others = [
            other
            for other in self.rows
            if other.policy is not None
            and other.precision == row.precision
            and other.is_exact >= row.is_exact
            and is_in_bf16(other.policy) == is_in_bf16(row.policy)
            and other.peak < row.peak
        ]
        return min(others, key=lambda other: (other.relative_cost, other.peak), default=None)

    def plot(self, path: Path | str) -> None:
        """Draw what makes up each peak, with the budget, as a PNG."""
        write_figure(self._figure(), Path(path))

    def _figure(self) -> Any:
        figure, axes = new_figure(10, 1.2 + 0.36 * len(self.rows))
        names = [row.name for row in self.rows]
        left = [0.0] * len(names)
        for part in ("parameters", "gradients", "optimizer", "inputs", "saved", "rest"):
            widths = [_parts(row)[part] / 2**30 for row in self.rows]
            axes.barh(names, widths, left=left, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for i, row in enumerate(self.rows):
            label = f" {row.peak / 2**30:.2f} GiB, step {row.relative_cost:.2f}x"
            axes.text(left[i], i, label, va="center", size=8)
        if self.budget is not None:
            axes.axvline(self.budget / 2**30, color="black", linestyle="--", linewidth=1)
        axes.set(xlabel="predicted peak of a training step, GiB", xlim=(0, 1.3 * max(left)))
        axes.invert_yaxis()
        axes.legend(fontsize=8, loc="lower right")
        return figure


def plan_memory(
    model: VideoClassifier,
    batch_size: int,
    *,
    precision: str = "no",
    budget: int | None = None,
    approximate: bool = False,
    accumulate: int = 1,
    optimizer: str = "adamw",
    cached: bool = False,
    also: Sequence[str] = (),
    device: str = "cuda",
    capture: bool = True,
    only_captured: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> MemoryPlan:
    """Predict what a training step needs under every sensible policy, and pick the fastest that fits.

    Args:
        model: an adapted classifier, on any device, the meta device too; left as it is. Policies on it are ignored.
        batch_size: clips B of ``model.num_frames`` frames at the backbone's size.
        precision: "no", or "bf16" or "fp16" autocast. With "bf16", policies that freeze the backbone in bf16 and run
            without autocast are tried as well: they keep less.
        budget: bytes; None takes the fastest of all.
        approximate: whether ``gelu2bit``, whose gradients are approximate, may be picked.
        accumulate: batches summed into a step.
        optimizer: "adamw", "sgd" or "adamw8bit", as of `TrainConfig`.
        cached: whether training reads tokens of `cache_features`, and not frames.
        also: further policies to count, which may be picked as well; for the given precision, and
            those with ``bf16`` in them also without autocast.
        device: "cuda" or "cpu": whose behaviour is predicted.
        capture: whether steps on "cuda" run as CUDA graphs, but for policy ``offload``, which cannot. What an H100 and
            its host would take is in `fe_adapter.memory.cost`.
        only_captured: pick what runs as a CUDA graph, where any such policy fits.
        progress: called with the name of each row before it is counted.

    Raises:
        InputError: the model has no adapters, or a value is out of range.
    """
    check_choice("precision", precision, tuple(PRECISIONS))
    check_count("batch_size", batch_size, 1)
    check_count("accumulate", accumulate, 1)
    if budget is not None:
        check_count("budget", budget, 1)
    if model.tune != "adapter":
        raise InputError(f"tune={model.tune!r} has nothing to plan: policies are for adapters on a frozen backbone")
    model = copy_without_values(model, "meta").train()
    apply_memory_policy(model, "none")
    for policy in also:
        check_memory_policy(model, policy)  # before the others are counted

    def estimate(
        name: str, model: VideoClassifier, policy: str | None, precision: str, clips: int, accumulate: int = accumulate
    ) -> MemoryEstimate:
        progress(name)
        shape, dtype = tokens if cached and model.tune == "adapter" else frames
        return estimate_memory(
            model, clips, *shape, dtype=dtype, precision=precision, policy=policy, accumulate=accumulate,
            optimizer=optimizer, device=device,
        )  # fmt: skip

    frames: tuple[tuple[int, ...], torch.dtype] = (model.num_frames, 3, *model.preprocessing.size), torch.uint8
    tokens = _cached_clip(model, frames[0]) if cached else frames
    full = _fully_tuned(model)
    first = estimate(FULL_TUNING, full, None, precision, batch_size)
    captures = device == "cuda" and capture
    unit = _costs(first, device)[captures]

    def row(name: str, policy: str | None, precision: str, counted: MemoryEstimate) -> PlanRow:
        is_captured = captures and not (policy is not None and needs_host(policy))
        eager, captured = (cost / unit for cost in _costs(counted, device))
        return PlanRow(name, policy, precision, counted, is_captured, captured if is_captured else eager, eager)

    rows = [row(FULL_TUNING, None, precision, first)]

    def add(name: str, precision: str, policy: str | None = None, other_model: VideoClassifier | None = None) -> None:
        """Count a row; that of another model is there to compare, and never picked."""
        counted = estimate(name, other_model or model, policy, precision, batch_size)
        rows.append(row(name, None if other_model else policy, precision, counted))

    prefix, inner_precision = ("bf16+", "no") if precision == "bf16" else ("", precision)
    if precision == "bf16":
        add(f"{FULL_TUNING}, all in bf16", "no", other_model=full.to(torch.bfloat16))
    wanted = [*candidates(model, precision), *((p, precision) for p in also)]
    wanted += [(p, inner_precision) for p in also if is_in_bf16(p)]
    for policy, own_precision in dict.fromkeys(wanted):
        add(f"{policy} (autocast)" if own_precision != inner_precision else policy, own_precision, policy)
    late = None if cached else _late_half(model)
    if late is not None:
        policy = f"{prefix}recompute_input"
        add(f"{policy}, only the last {len(_adapted_blocks(late))} blocks", inner_precision, policy, late)
    plan = MemoryPlan(tuple(rows), budget, None, "")
    chosen = plan.pick(budget, approximate, only_captured) or plan.pick(budget, approximate)
    if chosen is not None:
        cost = f"a step costs {chosen.relative_cost:.2f} of full fine-tuning's"
        how = f", captured; {chosen.eager_cost:.2f} if it cannot be" if chosen.is_captured else ""
        advice = f"{chosen.name}: {_size(chosen.peak)}, {cost}{how}"
    else:
        assert budget is not None
        policy = f"{prefix}{SMALLEST}"
        advice = f"nothing fits {_size(budget)}; " + _what_would_fit(
            budget, batch_size, policy, lambda clips: estimate(policy, model, policy, inner_precision, clips, 2).peak
        )
    return dataclasses.replace(plan, recommended=chosen, advice=advice)


def parse_bytes(text: str) -> int:
    """``"8GB"``, ``"7.5 GiB"`` or ``"800MB"`` in bytes; GB and GiB are both 2³⁰.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])I?B?\s*", text.upper())
    if match is None or not float(match[1]):
        raise InputError(f"{text!r} is no amount of memory; write it like 8GB or 800MB")
    return int(float(match[1]) * _UNITS[match[2]])


def candidates(model: VideoClassifier, precision: str) -> list[tuple[str, str]]:
    """The policies worth trying, each with the precision of autocast it is for, from the most memory to the least.

    Checkpoints go to the first blocks, whose memory is needed last: when they are run again, what the others kept is
    gone already.
    """
    adapted = _adapted_blocks(model)
    has_gelu = any(kind_of_gelu(module) for module in model.vit.modules())

    def first(share: float) -> str:
        count = max(1, round(share * len(adapted)))
        return f"full:{adapted[0]}-{adapted[count - 1]}"

    policies = [
        "none",
        "recompute_input",
        "gelu2bit+recompute_input",
        "selective",
        f"recompute_input+{first(1 / 2)}",
        f"gelu2bit+recompute_input+{first(1 / 2)}",
        f"recompute_input+{first(3 / 4)}",
        f"gelu2bit+recompute_input+{first(3 / 4)}",
        SMALLEST,
        "recompute_input+offload",
    ]
    policies = [policy for policy in dict.fromkeys(policies) if has_gelu or "gelu2bit" not in policy]
    if precision != "bf16":
        return [(policy, precision) for policy in policies]
    in_bf16 = [(f"bf16+{policy}".removesuffix("+none"), "no") for policy in policies]
    return [("none", precision), *in_bf16]


def is_exact(policy: str) -> bool:
    """Whether the gradients under ``policy`` are those without it, up to rounding."""
    return not any(name in APPROXIMATE for name, _ in parse_policy(policy))


def _adapted_blocks(model: VideoClassifier) -> list[int]:
    blocks = get_blocks(model.vit, get_adaptation(model.vit).blocks_path)
    adapted, active = map(get_state, blocks), get_adaptation(model.vit).active
    return [i for i, state in enumerate(adapted) if state is not None and active in state.adapters]


def _cached_clip(model: VideoClassifier, frames: tuple[int, ...]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape ``(T, L, D)`` and dtype of what `cache_features` keeps of a clip; ``model`` is on the meta device."""
    video = torch.empty(1, *frames, dtype=torch.uint8, device="meta")
    tokens = prefix_tokens(model.vit, lambda: model(video))
    return (frames[0], *tokens.shape[1:]), tokens.dtype


def _fully_tuned(model: VideoClassifier) -> VideoClassifier:
    full = copy.deepcopy(model)
    unadapt(full.vit).requires_grad_(True)
    full.tune = "full"
    return full.train()


def _late_half(model: VideoClassifier) -> VideoClassifier | None:
    adapted = _adapted_blocks(model)
    if len(adapted) < 2:
        return None
    late = copy.deepcopy(model)
    adaptation = get_adaptation(late.vit)
    half = len(adapted) // 2
    dilations = adaptation.config.dilations(len(adapted))[half:]
    dilation: Any = dilations[0] if len(set(dilations)) == 1 else tuple(dilations)
    config = dataclasses.replace(adaptation.config, blocks=tuple(adapted[half:]), recompute="input", dilation=dilation)
    adapt(unadapt(late.vit), config, num_frames=late.num_frames)
    return late


def smaller_batches(batch_size: int) -> list[int]:
    """The sizes of batches that make up one of ``batch_size`` when summed, the largest first."""
    return [size for size in range(batch_size // 2, 0, -1) if batch_size % size == 0]


def _what_would_fit(budget: int, batch_size: int, policy: str, peak: Callable[[int], int]) -> str:
    needed = 0
    for smaller in smaller_batches(batch_size):
        needed = peak(smaller)
        if needed <= budget:
            how = f"batch_size={smaller} with accumulate={batch_size // smaller} (the same step)"
            return f"{how} and {policy} needs {_size(needed)}"
    needed = needed or peak(1)
    hint = "use fewer frames, adapters in fewer blocks, or a smaller backbone"
    return f"one clip with {policy} needs {_size(needed)}; {hint}"


def _costs(estimate: MemoryEstimate, device: str) -> tuple[float, float]:
    """What a step costs launch by launch, and captured; only ratios mean something."""
    if device == "cpu":
        return (cpu_cost(estimate.work),) * 2
    return eager_seconds(estimate.work), captured_seconds(estimate.work)


def _parts(row: PlanRow) -> dict[str, int]:
    """What a peak is made of; ``rest`` is temporary. At the peak gradients may not be there yet."""
    estimate = row.estimate
    names = ("parameters", "gradients", "optimizer", "inputs", "saved")
    parts = {name: getattr(estimate, name) for name in names}
    excess = sum(parts.values()) - row.peak
    parts["gradients"] = max(0, parts["gradients"] - max(0, excess))
    return parts | {"rest": max(0, row.peak - sum(parts.values()))}


def _size(num_bytes: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes} bytes"
