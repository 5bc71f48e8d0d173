"""What a step costs, held to the steps that an H100 has measured: eager ones, with the host path of then."""

from __future__ import annotations

import functools
import statistics

import pytest
import timm
import torch

from bench.measure.results import FOLDER, read_results
from fe_adapter import FEAdapterConfig, VideoClassifier, estimate_memory
from fe_adapter.memory.cost import ADAPTER_BEFORE, Work, captured_seconds, device_seconds, eager_seconds
from fe_adapter.memory.plan import FULL_TUNING, candidates

H100 = FOLDER / "history" / "nvidia-h100-80gb-hbm3-2026-11-27-before.json"
VITS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
RECORDS = [record for record in read_results(H100)["records"] if record["case"] in ("ladder", "step")]
OTHERS = ("LoRA", "st-adapter", "no convolution")  # which the planner does not plan


def work_of(name: str, vit: str, T: int, B: int) -> Work:
    options = {
        FULL_TUNING: {"tune": "full"},
        "linear probe": {"tune": "head"},
        "dynamic": {"config": FEAdapterConfig(dilation="dynamic")},
    }.get(name, {"config": FEAdapterConfig(dilation=1)})
    dtype = torch.bfloat16 if name == "static, frozen in bf16" else torch.float32
    with torch.device("meta"):
        backbone = timm.create_model(VITS[vit], num_classes=0).to(dtype)
        model = VideoClassifier(backbone, 7, num_frames=T, **options).train()
    policies = dict(candidates(model, "bf16")) if options.get("config") else {}
    policy = name if name in policies else None
    return estimate_memory(
        model, B, T, 3, 224, 224, dtype=torch.uint8, precision=policies.get(name, "bf16"), policy=policy
    ).work


@pytest.mark.parametrize("record", [RECORDS[0], *(pytest.param(r, marks=pytest.mark.slow) for r in RECORDS[1:])])
def test_eager_steps_as_measured(record):
    """Within 15 % in milliseconds and over full fine-tuning's."""
    work = functools.partial(work_of, vit=record["point"]["vit"], T=record["point"]["T"], B=record["point"]["B"])
    predicted = {n: eager_seconds(work(n), ADAPTER_BEFORE) for n in record["providers"] if n not in OTHERS}
    measured = {n: statistics.median(record["providers"][n]["ms"]) / 1e3 for n in predicted}
    assert predicted == pytest.approx(measured, rel=0.15)
    over = [{n: t / times[FULL_TUNING] for n, t in times.items()} for times in (predicted, measured)]
    assert over[0] == pytest.approx(over[1], rel=0.15)


def test_a_graph_hides_the_host_and_nothing_else():
    work = Work(1e12, 1e11, 10**9, 0, 10**8, operators=1000, parameters=100, adapters=24)
    assert captured_seconds(work) == device_seconds(work) < eager_seconds(work)
    large = Work(1e15, 1e11, 10**9, 0, 10**8, operators=1000, parameters=100, adapters=24)
    assert eager_seconds(large) == pytest.approx(captured_seconds(large), rel=0.01)
