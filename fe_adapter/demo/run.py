"""The demo: data, a frozen image transformer, ways to make a video model of it, one prediction, one table.

Everything after the rendering is what a user calls: `VideoFolder`, `VideoClassifier`, `fit`, `evaluate`,
`predict_video`.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save as to_bytes
from torch import nn
from torch.nn import functional as F

from fe_adapter.backbones.build import build_backbone
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data import EvalTransform, FrameSampler, TrainTransform, VideoFolder
from fe_adapter.demo.dataset import CLASSES, draw_onset, make_stills, write_video, write_videos
from fe_adapter.demo.dataset import NUM_FRAMES as NUM_VIDEO_FRAMES
from fe_adapter.demo.faces import EXPRESSIONS, SIZE
from fe_adapter.environment import machine
from fe_adapter.errors import InputError
from fe_adapter.evaluate.run import evaluate
from fe_adapter.files import atomic_write, new_figure, write_figure, write_json
from fe_adapter.memory.measure import measure_peak_memory
from fe_adapter.memory.policies import apply_memory_policy
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.predict.video import predict_video
from fe_adapter.sharing.folder import load_classifier
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.recipe import fit

BACKBONE = "timm:vit_tiny_patch16_224"
BACKBONE_ARGS = {"img_size": SIZE, "patch_size": 12, "embed_dim": 64, "depth": 4, "num_heads": 4}
NUM_FRAMES = 8  # of a clip
MARKER = "README.txt"
words = Console(stderr=True)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything."""

    num_stills: int
    still_steps: int
    train_pairs: int
    test_pairs: int
    max_epochs: int


FULL = Size(num_stills=20_000, still_steps=900, train_pairs=400, test_pairs=100, max_epochs=7)
SHORT = Size(num_stills=12_000, still_steps=550, train_pairs=400, test_pairs=100, max_epochs=5)
QUICK = Size(num_stills=960, still_steps=40, train_pairs=24, test_pairs=12, max_epochs=1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A way to make a video model of the image model, and its peak learning rate."""

    name: str
    averages_frames: bool  # its logits do not depend on the order of the frames
    options: dict[str, Any]
    lr: float = 3e-3
    memory_policy: str | None = None
    is_extra: bool = False  # only in the comparison


def _adapter(**options: Any) -> dict[str, Any]:
    return {"config": FEAdapterConfig(bottleneck=32, **options)}


ENTRIES = (  # the first one is the model that the demo is about, and predicts
    Entry("FE-Adapter, dynamic dilation", False, _adapter(max_dilation=NUM_FRAMES / 2)),
    Entry("frozen + linear", True, {"tune": "head"}),
    Entry("frozen + attention over frames", False, {"tune": "head", "temporal_pool": "attention"}, is_extra=True),
    Entry("per-frame adapter (K=1)", True, _adapter(kernel_size=1, dilation=1), is_extra=True),
    Entry("FE-Adapter, static dilation", False, _adapter(dilation=1), is_extra=True),
    Entry(
        "FE-Adapter, static dilation, gelu2bit", False, _adapter(dilation=1), memory_policy="gelu2bit", is_extra=True
    ),
    Entry("full fine-tuning + temporal head", False, {"tune": "full", "temporal_pool": "concat"}, lr=1e-3),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: what an entry came to on the test videos."""

    name: str
    averages_frames: bool
    uar: float
    war: float
    num_trainable: int
    ms_per_step: float
    peak_bytes: int  # of a training step, beyond the model


def run_demo(out: Path, quick: bool = False, compare: bool = False) -> None:
    """Run everything and leave it in ``out``: videos, models, results, plot, a prediction with its timeline.

    Args:
        out: folder, empty or of another demo.
        quick: every step, too short to learn anything.
        compare: train the models that only tell adapters apart, too, and all of them longer.

    Raises:
        InputError: ``out`` holds something else, or a library is missing.
    """
    start = time.perf_counter()
    size = QUICK if quick else FULL if compare else SHORT
    _clear(out)
    words.print(f"1. Rendering {2 * (size.train_pairs + size.test_pairs)} videos of faces to {out / 'videos'}")
    write_videos(out / "videos" / "train", size.train_pairs, seed=1)
    write_videos(out / "videos" / "test", size.test_pairs, seed=2)
    words.print(f"2. Training an image transformer on {size.num_stills} stills of {len(EXPRESSIONS)} expressions")
    weights = out / "backbone.safetensors"
    accuracy = train_backbone(weights, size)
    words.print(f"   it names the expression of {accuracy:.1%} of new stills, and is frozen from here on")
    words.print("3. Training on the videos: does the expression appear (onset) or fade (offset)?")
    data = open_videos(out / "videos")
    rows = [train_entry(ENTRIES[0], weights, data, out, size)]
    words.print("4. What it says of a new video, in which an expression appears and then fades")
    _predict(out)
    words.print("5. What else one would try")
    rows += [train_entry(entry, weights, data, out, size) for entry in ENTRIES[1:] if compare or not entry.is_extra]
    _report(rows, 2 * size.test_pairs, out)
    seconds = time.perf_counter() - start
    content = {"machine": machine(), "size": dataclasses.asdict(size), "still_accuracy": accuracy, "seconds": seconds}
    write_json(out / "results.json", content | {"rows": [dataclasses.asdict(row) for row in rows]})
    words.print(f"All of it is in {out}. {seconds:.0f} s in all.")


def train_backbone(weights: Path, size: Size) -> float:
    """Train the image model and write its weights; returns its accuracy on new stills."""
    torch.manual_seed(0)
    vit: Any = build_backbone(BACKBONE, None, BACKBONE_ARGS)
    model = nn.Sequential(vit, nn.Linear(vit.embed_dim, len(EXPRESSIONS) + 1))
    images, labels = make_stills(size.num_stills, seed=0)
    mean, std = (torch.tensor(vit.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, size.still_steps, pct_start=0.15)
    for _ in track(range(size.still_steps), "stills", console=words, transient=True):
        chosen = torch.randint(len(images), (128,))
        batch = (images[chosen] / 255 - mean) / std
        batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
        loss = F.cross_entropy(model(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with atomic_write(weights) as file:
        file.write(to_bytes(vit.state_dict()))
    model.eval()
    images, labels = make_stills(size.num_stills // 8, seed=3)
    with torch.no_grad():
        predictions = torch.cat([model((x / 255 - mean) / std).argmax(1) for x in images.split(128)])
    return (predictions == labels).float().mean().item()


def open_videos(videos: Path) -> tuple[VideoFolder, VideoFolder]:
    """Training and test videos; every frame is kept in memory, for all models."""
    options: dict[str, Any] = {"class_names": CLASSES, "sampler": FrameSampler(NUM_FRAMES), "in_memory": True}
    augment = TrainTransform((SIZE, SIZE), scale=(0.7, 1.0), randaugment=False)
    train_set = VideoFolder(videos / "train", transform=augment, is_training=True, **options)
    return train_set, VideoFolder(videos / "test", transform=EvalTransform((SIZE, SIZE)), **options)


def train_entry(entry: Entry, weights: Path, data: tuple[VideoFolder, VideoFolder], out: Path, size: Size) -> Row:
    """Train one entry, save it in ``out/models``, and test it."""
    torch.manual_seed(0)
    model = VideoClassifier.from_name(
        BACKBONE,
        weights=weights,
        backbone_args=BACKBONE_ARGS,
        class_names=CLASSES,
        num_frames=NUM_FRAMES,
        **entry.options,
    )
    model.note = "made by fe-adapter demo: it knows drawn faces and nothing else"
    train_set, test_set = data
    if entry.memory_policy is not None:
        apply_memory_policy(model, entry.memory_policy)
    peak_bytes = measure_peak_memory(functools.partial(_step, model, 8))
    config = TrainConfig(
        max_epochs=size.max_epochs, batch_size=8, lr=entry.lr, warmup_epochs=1, label_smoothing=0.0, tracker=None
    )
    folder = out / "models" / _slug(entry.name)
    result = fit(model, train_set, None, config, out=folder)
    metrics = evaluate(load_classifier(result.folder), test_set, description="testing").metrics
    words.print(f"   {entry.name}: test UAR {metrics.uar:.1%} (chance is {1 / len(CLASSES):.0%})")
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Row(
        name=entry.name,
        averages_frames=entry.averages_frames,
        uar=metrics.uar,
        war=metrics.war,
        num_trainable=num_trainable,
        ms_per_step=result.ms_per_step,
        peak_bytes=peak_bytes,
    )


def _step(model: VideoClassifier, batch_size: int) -> None:
    """A training step on noise, of a model that is trained from the start afterwards."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    video = torch.randint(0, 256, (batch_size, NUM_FRAMES, 3, SIZE, SIZE), dtype=torch.uint8)
    F.cross_entropy(model(video), torch.zeros(batch_size, dtype=torch.long)).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)


def _report(rows: list[Row], num_videos: int, out: Path) -> None:
    """The table on stdout, and its plot."""
    table = Table(title=f"onset or offset? {num_videos} test videos, {NUM_FRAMES} frames each")
    table.add_column("")
    for column in ("test UAR", "test WAR", "trainable", "ms/step", "peak MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.uar:.1%}",
            f"{row.war:.1%}",
            f"{row.num_trainable:,}",
            f"{row.ms_per_step:.0f}",
            f"{row.peak_bytes / 2**20:.1f}",
        )
    Console().print(table)

    figure, axes = new_figure(8, 3)
    colors = ["tab:gray" if row.averages_frames else "tab:blue" for row in rows]
    bars = axes.barh([row.name for row in rows], [100 * row.uar for row in rows], color=colors)
    axes.bar_label(bars, [f"{row.uar:.1%}, {row.num_trainable:,} parameters" for row in rows], padding=3)
    axes.axvline(50, color="black", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 165), xticks=range(0, 101, 25), xlabel="test UAR, % (dashed: chance; grey: averages over frames)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, out / "results.png")


def _predict(out: Path) -> None:
    """Slide the dynamic adapter over a new video: neutral, onset, held, offset, neutral."""
    frames = draw_onset(np.random.default_rng(4))
    path = out / "prediction" / "appears_and_fades.mp4"
    still = NUM_VIDEO_FRAMES // 2
    first, last = frames[:1].repeat(still, axis=0), frames[-1:].repeat(still, axis=0)
    write_video(path, np.concatenate([first, frames, last, frames[::-1], first]))
    model = load_classifier(out / "models" / _slug(ENTRIES[0].name) / "last")
    prediction = predict_video(model, path, step=0.25)
    prediction.save(path.with_suffix(""))
    for (start, end), row in zip(prediction.windows, prediction.window_probabilities.tolist(), strict=True):
        bar = "█" * round(20 * row[0])
        words.print(f"   {start:.2f} to {end:.2f} s: onset {row[0]:4.0%}  offset {row[1]:4.0%}  {bar}", highlight=False)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _clear(out: Path) -> None:
    """An empty folder ``out``, where it was the demo's own or not there."""
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists()):
            raise InputError(f"{out} holds something that is not the demo's; choose another folder with --out")
        for path in out.iterdir():  # not ``out`` itself, which may be a mount point
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with atomic_write(out / MARKER) as file:
        file.write(b"Made by `fe-adapter demo`. The next run in this folder replaces everything in it.\n")
