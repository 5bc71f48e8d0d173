"""Training within a budget of memory, and steps that are to be captured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fe_adapter.errors import InputError
from fe_adapter.train import TrainConfig, budget
from tests.models.test_classifier import classifier


@pytest.mark.parametrize("capture", ["on", "auto"])
def test_a_plan_without_a_graph_refuses_one_that_is_asked_for(monkeypatch, capture):
    def plan_eager_steps(*arguments, **options):
        assert options["only_captured"] == (capture == "on")
        plan = real(*arguments, **options | {"device": "cpu"})
        rows = [dataclasses.replace(row, is_captured=False) for row in plan.rows]
        recommended = dataclasses.replace(plan.recommended, is_captured=False)
        return dataclasses.replace(plan, rows=rows, recommended=recommended)

    real = budget.plan_memory
    monkeypatch.setattr(budget, "plan_memory", plan_eager_steps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what is planned for
    recipe = TrainConfig(batch_size=1, capture=capture)

    def make() -> budget.MemoryBudget:
        return budget.MemoryBudget(classifier(), recipe, "8GB", False, False, False, said.append)

    said: list[str] = []
    if capture == "on":
        with pytest.raises(InputError, match=r"^--capture on cannot be honoured: \S+ is what fits, without a graph$"):
            make()
    else:
        assert make().recipe.capture == "off"
        assert "predicted" in said[0]
