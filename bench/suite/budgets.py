"""What `fe-adapter plan` says for ViT-B and ViT-L on cards of several sizes: the table of docs/memory.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fe_adapter import VideoClassifier
from fe_adapter.memory.plan import MemoryPlan, plan_memory

VITS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/14": "vit_large_patch14_clip_224"}
NUM_FRAMES = (8, 16, 32)
BATCH_SIZE = 8
BUDGETS_GB = (4, 8, 12, 16, 24)


def plans() -> Iterator[dict[str, Any]]:
    """A record for every net and number of frames: full fine-tuning's peak, and what is picked for each budget."""
    import timm

    for vit, name in VITS.items():
        for num_frames in NUM_FRAMES:
            with torch.device("meta"):
                model = VideoClassifier(timm.create_model(name, num_classes=0), 7, num_frames=num_frames)
            plan = plan_memory(model, BATCH_SIZE, precision="bf16")
            full = min(row.peak for row in plan.rows[:2])
            picked = {str(budget): _picked(plan, budget) for budget in BUDGETS_GB}
            yield {"vit": vit, "T": num_frames, "B": BATCH_SIZE, "full fine-tuning in bf16": full, "picked": picked}


def _picked(plan: MemoryPlan, budget: int) -> dict[str, Any] | None:
    row = plan.pick(budget * 2**30)
    if row is None:
        return None
    return {
        "policy": row.policy,
        "peak": row.peak,
        "relative_cost": row.relative_cost,
        "eager_cost": row.eager_cost,
        "is_captured": row.is_captured,
    }
