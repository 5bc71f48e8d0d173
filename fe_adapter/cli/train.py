"""``fe-adapter train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import (
    ADAPTER_FIELDS,
    Backbone,
    BackboneArgs,
    ConfigFile,
    Data,
    LastBlocks,
    find_device,
    in_last_blocks,
    read_json_object,
    words,
)
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data.faces import FaceOptions
from fe_adapter.data.protocol import ClipDataset
from fe_adapter.data.recipe import ClipRecipe, summary_of
from fe_adapter.errors import InputError, Terminated
from fe_adapter.memory.policies import check_device, is_in_bf16, replace_memory_policy
from fe_adapter.models.adaptation import trainable_summary
from fe_adapter.models.classifier import VideoClassifier, expected_frames
from fe_adapter.models.inference import chosen_precision
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.settings import settings_written

EXAMPLES = (
    "fe-adapter train videos/ --backbone timm:vit_base_patch16_clip_224.openai --out run",
    "fe-adapter train list.csv --backbone hf:google/vit-base-patch16-224 --num-frames 8 --out run --resume",
    "fe-adapter train marks.srt --window 1 --backbone timm:vit_small_patch14_dinov2 --last-blocks 4 --out run",
    "fe-adapter train videos/ --faces largest --backbone timm:vit_base_patch16_clip_224.openai --out run",
    "fe-adapter train dfew:DFEW --fold 1 --backbone timm:vit_large_patch14_clip_224.openai --memory 8GB --out run",
)
Recipe = Annotated[TrainConfig, Fields("Training", without=("precision",), panels={"memory_policy": "Memory"})]


def train(
    *,
    context: typer.Context,
    data: Data,
    backbone: Backbone,
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    weights: Annotated[str, typer.Option(help="pretrained, a local FILE or FOLDER, or none.")] = "pretrained",
    backbone_args: BackboneArgs = "{}",
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    clips: Annotated[ClipRecipe, Fields("Clips")],
    faces: Annotated[FaceOptions, Fields("Faces")],
    cache_features: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what blocks before the first adapter compute; no augmentation.", rich_help_panel="Clips"
        ),
    ] = None,
    adapter: Annotated[FEAdapterConfig, Fields("Adapter", only=(*ADAPTER_FIELDS, "recompute"))],
    last_blocks: LastBlocks = None,
    tune: Annotated[str, typer.Option(help="adapter, head or full.", rich_help_panel="Adapter")] = "adapter",
    temporal_pool: Annotated[str, typer.Option(help="mean, concat or attention.", rich_help_panel="Adapter")] = "mean",
    head_dropout: Annotated[float, typer.Option(help="Dropout before the head.", rich_help_panel="Adapter")] = 0.5,
    recipe: Recipe,
    precision: Annotated[
        str, typer.Option(help="no, bf16, fp16, or auto: bf16 where a GPU has it.", rich_help_panel="Training")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(help="Budget, such as 8GB: the fastest memory policy that fits.", rich_help_panel="Memory"),
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="--memory may pick gelu2bit.", rich_help_panel="Memory")
    ] = False,
    memory_fallback: Annotated[
        bool,
        typer.Option("--memory-fallback", help="Out of memory: go on with a smaller policy.", rich_help_panel="Memory"),
    ] = False,
) -> None:
    """Train adapters and a head on videos, the backbone frozen.

    The run folder gets log.jsonl, TensorBoard's files, a checkpoint to resume from, and the adapter folders last/ and
    best/ (by UAR on the validation split). Ctrl-C leaves a whole checkpoint.
    """
    from fe_adapter.train.budget import MemoryBudget
    from fe_adapter.train.feature_cache import cache_features as cache
    from fe_adapter.train.state import CHECKPOINT
    from fe_adapter.train.trackers import check_tracker

    faces.for_one_face()  # or what is wrong is said
    checkpoint, is_cached = out / CHECKPOINT, cache_features is not None
    if not resume and checkpoint.exists():
        raise InputError(f"{out} already holds a training run; add --resume or choose another folder")
    if is_cached and (recipe.mixup or recipe.cutmix):
        raise InputError("--mixup and --cutmix mix frames, of which --cache-features keeps none; leave out either")
    if memory is not None and recipe.memory_policy is not None:
        raise InputError("--memory picks the policy; leave --memory-policy out")
    precision = chosen_precision(precision, find_device("auto"), is_in_bf16(recipe.memory_policy))
    recipe = dataclasses.replace(recipe, precision=precision)
    check_device(recipe.memory_policy)
    check_tracker(recipe.tracker)
    adapter = in_last_blocks(adapter, last_blocks)
    train_videos = clips.open(data, "train", is_training=not is_cached, seed=recipe.seed)
    val_videos = clips.open(data, "val", class_names=train_videos.class_names, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    with words.status(f"Loading {backbone}"):
        model = VideoClassifier.from_name(
            backbone,
            weights=weights,
            backbone_args=read_json_object("--backbone-args", backbone_args),
            class_names=train_videos.class_names,
            num_frames=clips.num_frames,
            config=adapter if tune == "adapter" else None,
            tune=tune,
            temporal_pool=temporal_pool,
            head_dropout=head_dropout,
        )
    frames = expected_frames(model)
    face_recipe = faces.recipe({"size": max(frames[0])})
    faces.crop(train_videos, val_videos, recipe=face_recipe, num_workers=recipe.num_workers)
    within = MemoryBudget(model, recipe, memory, approximate, memory_fallback, is_cached, say=words.print)
    train_videos.transform, val_videos.transform = clips.transform(*frames, not is_cached), clips.transform(*frames)
    train_set: ClipDataset = train_videos  # or what is kept of them
    val_set: ClipDataset = val_videos
    if cache_features is not None:
        model.to(find_device("auto"))
        if within.recipe.memory_policy is not None:  # it may round the weights
            replace_memory_policy(model, within.recipe.memory_policy)
        options: dict[str, Any] = {"batch_size": recipe.batch_size, "num_workers": recipe.num_workers}
        options["precision"] = within.recipe.precision
        train_set = cache(model, train_videos, cache_features / "train", **options)
        val_set = cache(model, val_videos, cache_features / "val", **options)
    with settings_written(out, context.params | {"kernel_size": adapter.kernel_size}):
        words.print(summary_of(train_videos, val_videos), trainable_summary(model), sep="\n")
        try:
            result = within.fit(train_set, val_set, out=out, resume=resume)
        except (KeyboardInterrupt, Terminated):
            if checkpoint.exists():
                words.print(f"The checkpoint in {out} is whole; the same command with --resume goes on from it.")
            raise
    last, best = result.history[-1], max(result.history, key=lambda entry: entry["uar"])
    for name, entry in (("last", last), ("best", best)):
        words.print(f"{name} epoch: UAR {entry['uar']:.1%}, WAR {entry['war']:.1%} on the validation split")
    words.print(f"Next: fe-adapter predict {out} VIDEO")
