"""The memory planner, and training within a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import pytest
import torch

from fe_adapter import FEAdapterConfig, VideoClassifier, estimate_memory
from fe_adapter.cli import app as cli
from fe_adapter.cli.plan import _print as print_plan
from fe_adapter.errors import InputError
from fe_adapter.memory.measure import measure_peak_memory
from fe_adapter.memory.plan import parse_bytes, plan_memory
from fe_adapter.train import recipe
from tests.cli.test_commands import BACKBONE, FAST, fails, videos  # noqa: F401 (a fixture)
from tests.vits import build


@pytest.fixture(scope="module")
def model():
    return VideoClassifier(build("timm vit"), 3, num_frames=4, config=FEAdapterConfig(bottleneck=8))


@pytest.fixture(scope="module")
def plan(model):
    return plan_memory(model, 16, precision="bf16")


def test_full_fine_tuning_is_the_measure_of_all_rows(plan):
    first, second, *rows = plan.rows
    assert first.name == "full fine-tuning"
    assert first.relative_cost == 1
    assert second.estimate.parameters < first.estimate.parameters
    assert {row.precision for row in rows} == {"bf16", "no"}  # autocast, and a backbone in bf16 without
    by_policy = {row.policy: row for row in rows}
    assert by_policy["bf16+recompute_input+full"].estimate.saved < by_policy["bf16"].estimate.saved / 5
    assert by_policy["bf16+recompute_input+full"].eager_cost > by_policy["bf16"].eager_cost
    assert not by_policy["bf16+gelu2bit+recompute_input"].is_exact
    assert plan.recommended is not None
    assert plan.recommended.relative_cost == min(row.relative_cost for row in rows if row.policy and row.is_exact)


def test_the_fastest_that_fits_is_recommended(model, plan):
    rows = {row.policy: row for row in plan.rows if row.policy}
    target = rows["bf16+recompute_input+full"]
    tight = plan_memory(model, 16, precision="bf16", budget=target.peak)
    assert tight.recommended is not None
    assert tight.recommended.peak <= target.peak
    assert tight.recommended.relative_cost <= target.relative_cost
    budget = rows["bf16+gelu2bit+recompute_input"].peak
    exact, approximate = (plan_memory(model, 16, precision="bf16", budget=budget, approximate=a) for a in (False, True))
    assert exact.recommended is not None
    assert approximate.recommended is not None
    assert exact.recommended.is_exact
    assert approximate.recommended.relative_cost <= exact.recommended.relative_cost


def test_what_would_fit_is_said_where_nothing_does(model):
    needed = min(row.estimate.peak for row in plan_memory(model, 4).rows if row.policy)  # not captured
    found = plan_memory(model, 16, budget=needed)
    assert found.recommended is None
    assert "with accumulate=" in found.advice
    assert "one clip with recompute_input+full needs" in plan_memory(model, 16, budget=1000).advice


def test_policies_on_the_model_and_its_weights_do_not_matter(model, plan):
    from fe_adapter import apply_memory_policy

    apply_memory_policy(model, "full")
    again = plan_memory(model, 16, precision="bf16")
    apply_memory_policy(model, "none")
    assert [row.estimate for row in again.rows] == [row.estimate for row in plan.rows]


def test_smaller_steps_down_to_the_end(plan):
    row, peaks = plan.rows[3], []
    while row is not None:
        peaks.append(row.peak)
        row = plan.smaller(row)
    assert len(peaks) > 1
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] == min(other.peak for other in plan.rows if other.policy and other.is_exact)


def test_what_is_recommended_is_never_dominated(model, plan):
    for budget in {row.peak for row in plan.rows} | {row.estimate.peak for row in plan.rows}:
        chosen = plan.pick(budget)
        if chosen is not None and chosen.is_captured:
            assert not plan.is_dominated(chosen)
    ours = [row for row in plan.rows if row.policy is not None]
    assert any(plan.is_dominated(row) for row in ours)
    assert not all(plan.is_dominated(row) for row in ours)


def test_where_a_graph_is_asked_for_one_that_fits_is_picked(plan):
    """Of large batches a policy that keeps more may cost less without a graph than another one with it."""
    rows = [dataclasses.replace(row, eager_cost=row.relative_cost / 2) for row in plan.rows]
    large = dataclasses.replace(plan, rows=tuple(rows))
    peaks = [row.peak for row in rows if row.policy and row.is_exact and row.is_captured]
    assert not large.pick(min(peaks)).is_captured
    found = large.pick(min(peaks), only_captured=True)
    assert found.is_captured
    assert found.peak == min(peaks)
    assert large.pick(min(peaks) - 1, only_captured=True) is None


def test_a_graph_has_a_pool_and_where_it_does_not_fit_steps_are_eager(model, plan):
    captured = [row for row in plan.rows if row.is_captured]
    assert {row.policy for row in plan.rows} - {row.policy for row in captured} == {"bf16+recompute_input+offload"}
    assert all(row.peak > row.estimate.peak for row in captured)
    assert all(row.relative_cost <= row.eager_cost for row in captured)
    smallest = min(row.estimate.peak for row in captured if row.policy)
    assert smallest < min(row.peak for row in captured if row.policy)
    chosen = plan.pick(smallest, approximate=True)
    assert chosen is not None
    assert not chosen.is_captured
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        print_plan(dataclasses.replace(plan, recommended=chosen), "")
    (shown,) = [line for line in words.getvalue().splitlines() if f"{chosen.name} " in line]
    assert f"{chosen.estimate.peak / 2**20:,.0f}" in shown
    assert not any(row.is_captured for row in plan_memory(model, 4, device="cpu").rows)
    eager = plan_memory(model, 16, precision="bf16", capture=False, only_captured=True)
    assert eager.recommended is not None
    assert not any(row.is_captured for row in eager.rows)
    assert [row.peak for row in eager.rows] == [row.estimate.peak for row in plan.rows]


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 2**33), ("7.5 GiB", 7.5 * 2**30), ("800mb", 800 * 2**20), ("1k", 1024)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8", "8 apples", "-1GB", "0GB", "GB"])
def test_bad_sizes(text):
    with pytest.raises(InputError, match="no amount of memory"):
        parse_bytes(text)


def test_advice_keeps_the_step(model):
    """Seven clips are one, seven times; nothing else is the same step."""
    needed = plan_memory(model, 7, accumulate=2).rows[-2].estimate.peak
    advice = plan_memory(model, 7, budget=int(0.9 * needed)).advice
    assert "batch_size=1 with accumulate=7" in advice


def test_accumulated_gradients_are_there(model):
    once, summed = (plan_memory(model, 4, accumulate=n).rows[1].estimate for n in (1, 2))
    assert 0 < summed.peak - once.peak <= once.gradients + 512 * 30


def test_a_policy_of_ones_own_is_counted_too(model):
    plan = plan_memory(model, 4, also=["full:1"])
    row = plan.find("full:1", "no")
    assert row is not None
    assert plan.smaller(row) is not None


@pytest.mark.parametrize("budget", [0, -5, float("nan"), "8GB"])
def test_a_budget_is_a_number_of_bytes(model, budget):
    with pytest.raises((InputError, TypeError), match="budget="):
        plan_memory(model, 4, budget=budget)


def test_a_model_without_adapters_has_nothing_to_plan():
    with pytest.raises(InputError, match="has nothing to plan"):
        plan_memory(VideoClassifier(build("timm vit"), 3, num_frames=4, tune="head"), 2)


def test_swiglu_has_no_gelu2bit():
    swiglu = VideoClassifier(build("timm eva02"), 3, num_frames=4)
    assert not any("gelu2bit" in row.name for row in plan_memory(swiglu, 2).rows)


def test_cached_tokens_are_what_comes_in():
    config = FEAdapterConfig(bottleneck=8, blocks=(1,))
    model = VideoClassifier(build("timm vit"), 3, num_frames=4, config=config)
    plan = plan_memory(model, 16, cached=True, device="cpu")
    assert plan.rows[0].estimate.inputs == 16 * 4 * 3 * 32 * 32  # full fine-tuning sees frames
    tokens = torch.rand(16, 4, 17, 48)
    by_policy = {row.policy: row.estimate for row in plan.rows}
    assert by_policy["none"] == estimate_memory(model, *tokens.shape)
    assert by_policy["none"].inputs == tokens.nbytes
    held = by_policy["none"].resident + by_policy["none"].optimizer
    measured = held + measure_peak_memory(lambda: model(tokens).sum().backward())
    assert by_policy["none"].peak == pytest.approx(measured, rel=0.01)


def test_the_command_prints_and_draws(tmp_path, capsys):
    arguments = ["plan", *BACKBONE, "--num-frames", "4", "--batch-size", "2", "--plot", str(tmp_path / "plan.png")]
    assert cli.run([*arguments, "--memory", "1GB"]) == 0
    shown = capsys.readouterr()
    assert "PREDICTED" in shown.out
    assert "full fine-tuning" in shown.out
    assert "of full fine-tuning's" in shown.err
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert cli.run([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["recommended"] in {row["name"] for row in content["rows"]}
    assert "no amount of memory" in fails(capsys, [*arguments, "--memory", "lots"])
    assert "optimizer='lion' is not one of" in fails(capsys, [*arguments, "--optimizer", "lion"])
    assert cli.run([*arguments, "--json", "--optimizer", "sgd", "--memory-policy", "bf16+selective:0"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["estimate"]["optimizer"] == row["estimate"]["gradients"] for row in rows)
    assert [row["precision"] for row in rows if row["policy"] == "bf16+selective:0"] == ["bf16", "no"]


def test_train_within_a_budget(videos, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "run"
    arguments = ["train", str(videos), *BACKBONE, "--weights", "none", *FAST, "--batch-size", "2", "--out", str(out)]
    assert "nothing fits" in fails(capsys, [*arguments, "--memory", "100KB"])
    assert "leave --memory-policy out" in fails(capsys, [*arguments, "--memory", "1GB", "--memory-policy", "full"])
    assert cli.run([*arguments, "--memory", "1GB"]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (memory,) = [line for line in lines if "predicted_peak" in line]
    assert memory["peak"] == pytest.approx(memory["predicted_peak"], rel=0.15)  # so small that scratch shows


def test_out_of_memory_steps_down_or_stops(videos, tmp_path, capsys, monkeypatch):  # noqa: F811
    """The second step does not fit until the policy is a smaller one; nothing that was trained is lost."""
    batch = recipe._Run._batch

    def too_large(self, *arguments):
        if self.position.step >= 1 and self.config.memory_policy is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(self, *arguments)

    size = '{"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}'
    arguments = ["train", str(videos), *BACKBONE[:2], "--backbone-args", size, "--weights", "none", *FAST]
    arguments += ["--batch-size", "2", "--save-every", "1"]
    assert cli.run([*arguments, "--out", str(tmp_path / "reference")]) == 0
    monkeypatch.setattr(recipe._Run, "_batch", too_large)
    capsys.readouterr()
    assert cli.run([*arguments, "--out", str(tmp_path / "stopped")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory at step 1" in line
    assert "is whole" in line
    assert "--memory-policy" in line
    assert (tmp_path / "stopped" / recipe.CHECKPOINT).exists()
    assert cli.run([*arguments, "--out", str(tmp_path / "run"), "--memory-fallback"]) == 0
    assert "Going on with memory policy" in capsys.readouterr().err
    losses = [
        [line["loss"] for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
         if "loss" in line] for name in ("reference", "run")
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "dilation"), [(3, (1, 2)), (3, (2, 2)), ((3, 3, 3), (2, 1, 1)), ((3, 3, 3), ((1, 1, 1), (2, 1, 2)))]
)
def test_a_dilation_for_each_block_is_planned(kernel_size, dilation):
    config = FEAdapterConfig(bottleneck=8, kernel_size=kernel_size, dilation=dilation)
    model = VideoClassifier(build("timm vit"), 2, config=config, num_frames=2)
    assert any("only the last" in row.name for row in plan_memory(model, 2).rows)
