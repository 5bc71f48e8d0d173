"""The memory of a training step: estimated, measured, planned, and made less."""

from fe_adapter.memory.estimate import MemoryEstimate, estimate_memory
from fe_adapter.memory.measure import measure_peak_memory, measure_saved_memory
from fe_adapter.memory.plan import MemoryPlan, PlanRow, parse_bytes, plan_memory
from fe_adapter.memory.policies import POLICIES, apply_memory_policy, replace_memory_policy

__all__ = [
    "POLICIES",
    "MemoryEstimate",
    "MemoryPlan",
    "PlanRow",
    "apply_memory_policy",
    "estimate_memory",
    "measure_peak_memory",
    "measure_saved_memory",
    "parse_bytes",
    "plan_memory",
    "replace_memory_policy",
]
