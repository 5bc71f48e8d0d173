"""``fe-adapter plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Adapter, Backbone, BackboneArgs, LastBlocks, in_last_blocks, read_json_object, words
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.files import make_folder
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.train.config import TrainConfig

if TYPE_CHECKING:
    from fe_adapter.memory.plan import MemoryPlan

EXAMPLES = (
    "fe-adapter plan --backbone timm:vit_base_patch16_224 --num-frames 8 --memory 4GB",
    "fe-adapter plan --backbone timm:vit_large_patch14_clip_224 --batch-size 4 --json --plot none",
)


def plan(
    *,
    backbone: Backbone,
    clips: Annotated[ClipRecipe, Fields(only=("num_frames",))],
    recipe: Annotated[TrainConfig, Fields(only=("batch_size", "accumulate", "optimizer", "capture"))],
    memory: Annotated[str | None, typer.Option(help="Budget, such as 8GB (GB is 2^30 bytes).")] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "bf16",
    cached: Annotated[bool, typer.Option("--cached", help="Train on tokens of --cache-features.")] = False,
    memory_policy: Annotated[
        list[str] | None, typer.Option(help="Count this policy, too, such as bf16+nf4+full:0-5; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu: whose behaviour is predicted; none is needed.")] = "cuda",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Also pick gelu2bit, whose gradients are approximate.")
    ] = False,
    backbone_args: BackboneArgs = "{}",
    adapter: Adapter,
    last_blocks: LastBlocks = None,
    plot: Annotated[str, typer.Option(help="PNG file with the parts of each peak; none draws nothing.")] = "plan.png",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Predict the memory and the relative cost of a training step under every memory policy, before anything runs.

    Counted on tensors without values: no GPU, no weights and little memory are needed. A CUDA context and the
    allocator's fragmentation come on top of the figures.
    """
    from fe_adapter.memory.plan import parse_bytes, plan_memory

    budget = None if memory is None else parse_bytes(memory)
    adapter = in_last_blocks(adapter, last_blocks)
    args = read_json_object("--backbone-args", backbone_args)
    if plot != "none":
        make_folder(Path(plot).absolute().parent)
    with torch.device("meta"):
        model = VideoClassifier.from_name(
            backbone, num_classes=7, weights=None, backbone_args=args, num_frames=clips.num_frames, config=adapter
        )
    with words.status("Counting") as status:
        found = plan_memory(
            model, recipe.batch_size, precision=precision, budget=budget, approximate=approximate,
            accumulate=recipe.accumulate, optimizer=recipe.optimizer, cached=cached, also=memory_policy or (),
            device=device, capture=recipe.capture != "off", progress=lambda name: status.update(f"Counting {name}"),
        )  # fmt: skip
    if plot != "none":
        found.plot(plot)
        words.print(f"drawn in {plot}")
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    shape = f"{recipe.batch_size} x {clips.num_frames} frames"
    _print(found, f"{backbone}, {shape}, {precision}, {recipe.optimizer}, {device}: PREDICTED")
    words.print(found.advice)


def _print(found: MemoryPlan, title: str) -> None:
    is_captured = found.rows[0].is_captured
    columns = ("", "weights", "gradients", "optimizer", "saved", "peak MiB", "of full", "step")
    caption = "step: over full fine-tuning's, captured in a CUDA graph; not captured: launch by launch. " * is_captured
    table = Table(title=title, caption=caption + "Dim: another policy takes neither more time nor more memory.")
    for name in columns:
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    if is_captured:
        table.add_column("not captured", justify="right", no_wrap=True)
    full, recommended = found.rows[0].peak, found.recommended
    rows = []
    for row in found.rows:
        rows.append(row)
        if recommended is not None and recommended.name == row.eagerly().name != row.name:  # its graph does not fit
            rows.append(recommended)
    for row in rows:
        e = row.estimate
        sizes = [f"{n / 2**20:,.0f}" for n in (e.parameters, e.gradients, e.optimizer, e.saved, row.peak)]
        chosen = recommended is not None and row.name == recommended.name
        style = "bold" if chosen else "dim" if row.policy is not None and found.is_dominated(row) else None
        step = f"{row.relative_cost:.2f}x" if row.is_captured or not is_captured else "-"
        eager = [f"{row.eager_cost:.2f}x"] if is_captured else []
        table.add_row(row.name, *sizes, f"{row.peak / full:.2f}", step, *eager, style=style)
    console = Console()
    console.width = max(console.width, 140)  # a name that is cut off is of no use in a file
    console.print(table)
