"""Training within a budget of memory: ``train --memory`` and ``--memory-fallback``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from fe_adapter.data.protocol import ClipDataset
from fe_adapter.errors import InputError, OutOfMemoryError
from fe_adapter.memory.plan import MemoryPlan, PlanRow, parse_bytes, plan_memory
from fe_adapter.memory.policies import check_memory_policy
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.recipe import TrainResult, fit
from fe_adapter.train.state import CHECKPOINT


class MemoryBudget:
    """Training within a budget of memory: plans, says what to expect, and steps down where that was too little."""

    def __init__(
        self,
        model: VideoClassifier,
        recipe: TrainConfig,
        budget: str | None,
        approximate: bool,
        fallback: bool,
        cached: bool,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.recipe, self.fallback, self.say = model, recipe, fallback, say
        self.plan: MemoryPlan | None = None
        self.row: PlanRow | None = None
        if recipe.memory_policy is not None:
            check_memory_policy(model, recipe.memory_policy)  # before anything is written
        if budget is None and not fallback:
            return
        self.plan = plan_memory(
            model,
            recipe.batch_size,
            precision=recipe.precision,
            budget=None if budget is None else parse_bytes(budget),
            approximate=approximate,
            accumulate=recipe.accumulate,
            optimizer=recipe.optimizer,
            cached=cached,
            also=() if recipe.memory_policy is None else (recipe.memory_policy,),
            device="cuda" if torch.cuda.is_available() else "cpu",
            capture=recipe.capture != "off",
            only_captured=recipe.capture == "on",
        )
        if budget is None:  # start with what was asked for
            self.row = self.plan.find(recipe.memory_policy or "none", recipe.precision)
            return
        if self.plan.recommended is None:
            raise InputError(f"--memory {budget}: {self.plan.advice}")
        self.say(f"memory policy {self.plan.advice} (predicted)")
        self._use(self.plan.recommended)

    def fit(self, train_set: ClipDataset, val_set: ClipDataset, out: Path, resume: bool) -> TrainResult:
        trained = [p for p in self.model.parameters() if p.requires_grad] if self.fallback else []
        first = [(p, p.detach().clone()) for p in trained]
        while True:
            expected = None if self.row is None else self.row.estimate.peak
            try:
                return fit(self.model, train_set, val_set, self.recipe, out=out, resume=resume, expected_peak=expected)
            except OutOfMemoryError as error:
                smaller = None if self.plan is None or self.row is None else self.plan.smaller(self.row)
                if not self.fallback or smaller is None:
                    raise
                self.say(f"{str(error).partition('.')[0]}. Going on with memory policy {smaller.name}")
                self._use(smaller)
            resume = True
            if not (out / CHECKPOINT).exists():
                for p, value in first:
                    p.data.copy_(value)

    def _use(self, row: PlanRow) -> None:
        self.row = row
        capture = self.recipe.capture
        if torch.cuda.is_available() and not row.is_captured:
            if capture == "on":
                raise InputError(f"--capture on cannot be honoured: {row.name} is what fits, without a graph")
            capture = "off"
        self.recipe = dataclasses.replace(
            self.recipe, memory_policy=row.policy, precision=row.precision, capture=capture
        )
