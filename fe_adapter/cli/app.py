"""The command line ``fe-adapter``: results go to stdout or files, words for people to stderr.

Exit codes: 2 for bad use or input, with one line on stderr; 1 for a failure while running; 130 after Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import track
from rich.table import Table

from fe_adapter import __version__
from fe_adapter.checks import check_count
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data.sampling import FrameSampler
from fe_adapter.data.transforms import EvalTransform, TrainTransform
from fe_adapter.errors import InputError, TrainingError
from fe_adapter.files import read_json, write_json
from fe_adapter.memory.policies import check_device, is_in_bf16, replace_memory_policy
from fe_adapter.models.adaptation import trainable_summary
from fe_adapter.models.classifier import VideoClassifier
from fe_adapter.sharing.folder import load_classifier
from fe_adapter.train.budget import MemoryBudget
from fe_adapter.train.config import TrainConfig
from fe_adapter.train.recipe import CHECKPOINT

if TYPE_CHECKING:
    from fe_adapter.memory.plan import MemoryPlan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Temporal adapters on a frozen image transformer: train on videos, test, predict.",
)
words = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # of several processes the first one speaks
SETTINGS_FILE = "settings.json"


def main() -> None:
    """The entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=words)])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # CUDA builds complain on stderr where there is no GPU
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        code = app(arguments, prog_name="fe-adapter", standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this
            _say_error("interrupted")
        return code
    except (InputError, TrainingError) as error:
        _say_error(str(error))
        return 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, typer.Abort):
        _say_error("interrupted")
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors have one
            raise
        if error.format_message():  # empty after the help that answers a bare fe-adapter
            _say_error(f"{error.format_message()} (see fe-adapter --help)")
        return 2


def _say_error(message: str) -> None:
    print(f"fe-adapter: {message}", file=sys.stderr)


def _use_config_file(context: typer.Context, file: Path | None) -> Path | None:
    """Make the values in a TOML file the defaults of the options."""
    if file is None:
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{file} is no TOML file: {error}") from None
    known = {parameter.name for parameter in context.command.params} - {"config", "data", "resume"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{file} sets {unknown[0]!r}, which is no option; options are {', '.join(sorted(known))}")
    context.default_map = {name: _as_option(value) for name, value in values.items()}
    return file


def _as_option(value: Any) -> Any:
    """A TOML list or table as the command line writes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


# Options that several commands share.
Data = Annotated[Path, typer.Argument(help="Folder with a folder of videos per class, or a CSV with path,label.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="What train wrote, or an adapter folder.")]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, if they moved: FILE, FOLDER, pretrained or none.")
]
BatchSize = Annotated[int, typer.Option(help="Clips at a time.")]
Workers = Annotated[int, typer.Option(help="Processes that decode videos; 0 decodes in this one.")]
Backbone = Annotated[str, typer.Option(help="timm:NAME, hf:NAME, openclip:NAME/TAG or torchvision:NAME.")]
BackboneArgs = Annotated[str, typer.Option(help="""More for the backbone, as JSON: '{"img_size": 96}'.""")]
Bottleneck = Annotated[
    int | None, typer.Option(help="Width R; default half the backbone's.", rich_help_panel="Adapter")
]
KernelSize = Annotated[int, typer.Option(help="Frames a tap wide, odd.", rich_help_panel="Adapter")]
Dilation = Annotated[str, typer.Option(help="dynamic, or a number.", rich_help_panel="Adapter")]
Positions = Annotated[str, typer.Option(help="Before attn, mlp, or attn,mlp.", rich_help_panel="Adapter")]
LastBlocks = Annotated[
    int | None, typer.Option(help="Adapters in the last K blocks; default all.", rich_help_panel="Adapter")
]
OnError = Annotated[str, typer.Option(help="Unreadable videos: fail, naming them, or skip.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


@app.command(
    epilog="Examples:\n\n  fe-adapter train videos/ --backbone timm:vit_base_patch16_clip_224.openai --out run\n\n"
    "  fe-adapter train list.csv --backbone hf:google/vit-base-patch16-224 --num-frames 8 --out run --resume\n\n"
    "  fe-adapter train videos/ --backbone timm:vit_large_patch14_clip_224.openai --memory 8GB --out run"
)
def train(
    context: typer.Context,
    data: Data,
    backbone: Backbone,
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    weights: Annotated[str, typer.Option(help="pretrained, a local FILE or FOLDER, or none.")] = "pretrained",
    backbone_args: BackboneArgs = "{}",
    config: Annotated[
        Path | None,
        typer.Option(callback=_use_config_file, is_eager=True, help="TOML file with values for these options."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.", rich_help_panel="Clips")] = 16,
    sampling: Annotated[str, typer.Option(help="uniform, stride or dense.", rich_help_panel="Clips")] = "uniform",
    stride: Annotated[int, typer.Option(help="Frames from one to the next.", rich_help_panel="Clips")] = 4,
    val_fraction: Annotated[
        float, typer.Option(help="Held out for validation where DATA has no val split.", rich_help_panel="Clips")
    ] = 0.2,
    on_error: Annotated[
        str, typer.Option(help="Unreadable videos: fail, naming them, or skip.", rich_help_panel="Clips")
    ] = "fail",
    flip: Annotated[bool, typer.Option(help="Mirror half of the clips.", rich_help_panel="Clips")] = True,
    randaugment: Annotated[bool, typer.Option(help="Augment clips by RandAugment.", rich_help_panel="Clips")] = True,
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="Decode once and keep all frames.", rich_help_panel="Clips")
    ] = False,
    bottleneck: Bottleneck = None,
    kernel_size: KernelSize = 3,
    dilation: Dilation = "dynamic",
    positions: Positions = "attn",
    cache_features: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what blocks before the first adapter compute; no augmentation.", rich_help_panel="Clips"
        ),
    ] = None,
    last_blocks: LastBlocks = None,
    recompute: Annotated[
        str | None, typer.Option(help="hidden or input: keep less for backward.", rich_help_panel="Adapter")
    ] = None,
    tune: Annotated[str, typer.Option(help="adapter, head or full.", rich_help_panel="Adapter")] = "adapter",
    temporal_pool: Annotated[str, typer.Option(help="mean or concat.", rich_help_panel="Adapter")] = "mean",
    head_dropout: Annotated[float, typer.Option(help="Before the head.", rich_help_panel="Adapter")] = 0.5,
    max_epochs: Annotated[int, typer.Option(help="Passes over the data.", rich_help_panel="Training")] = 30,
    batch_size: Annotated[int, typer.Option(help="Clips at a time.", rich_help_panel="Training")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches to one step.", rich_help_panel="Training")] = 1,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd, or adamw8bit.", rich_help_panel="Training")] = "adamw",
    lr: Annotated[
        float | None, typer.Option(help="Peak; default base-lr × clips / 256.", rich_help_panel="Training")
    ] = None,
    base_lr: Annotated[float, typer.Option(help="For a step of 256 clips.", rich_help_panel="Training")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.", rich_help_panel="Training")] = 1e-2,
    warmup_epochs: Annotated[float, typer.Option(help="Then a cosine to 0.", rich_help_panel="Training")] = 2,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).", rich_help_panel="Training")] = 0.1,
    clip_grad_norm: Annotated[float, typer.Option(help="Largest of the gradient.", rich_help_panel="Training")] = 1.0,
    sampler: Annotated[str, typer.Option(help="shuffle or balanced.", rich_help_panel="Training")] = "shuffle",
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
    memory_policy: Annotated[
        str | None, typer.Option(help="A policy by name, such as full:0-5+gelu2bit.", rich_help_panel="Memory")
    ] = None,
    memory_fallback: Annotated[
        bool,
        typer.Option("--memory-fallback", help="Out of memory: go on with a smaller policy.", rich_help_panel="Memory"),
    ] = False,
    num_workers: Annotated[int, typer.Option(help="Processes that decode.", rich_help_panel="Training")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps to a checkpoint.", rich_help_panel="Training")] = 200,
    seed: Annotated[int, typer.Option(help="Of all chance.", rich_help_panel="Training")] = 0,
    tracker: Annotated[
        str, typer.Option(help="tensorboard, wandb or none.", rich_help_panel="Training")
    ] = "tensorboard",
) -> None:
    """Train adapters and a head on videos, the backbone frozen.

    The run folder gets log.jsonl, TensorBoard's files, a checkpoint to resume from, and the adapter folders last/ and
    best/ (by UAR on the validation split). Ctrl-C leaves a whole checkpoint.
    """
    from fe_adapter.data import open_dataset
    from fe_adapter.train.feature_cache import cache_features as cache

    if not resume and (out / CHECKPOINT).exists():
        raise InputError(f"{out} already holds a training run; add --resume or choose another folder")
    if memory is not None and memory_policy is not None:
        raise InputError("--memory picks the policy; leave --memory-policy out")
    recipe = TrainConfig(
        **{field.name: context.params[field.name] for field in dataclasses.fields(TrainConfig)}
        | {"precision": "no" if precision == "auto" and is_in_bf16(memory_policy) else _precision(precision)}
        | {"tracker": None if tracker == "none" else tracker}
    )
    check_device(recipe.memory_policy)
    frames = FrameSampler(num_frames, sampling, stride)
    adapter = _adapter(bottleneck, kernel_size, dilation, positions, last_blocks, recompute)
    common: dict[str, Any] = {"sampler": frames, "seed": seed, "on_error": on_error, "val_fraction": val_fraction}
    train_set: Any = open_dataset(data, "train", is_training=cache_features is None, in_memory=in_memory, **common)
    val_set: Any = open_dataset(data, "val", class_names=train_set.class_names, in_memory=in_memory, **common)
    torch.manual_seed(seed)
    with words.status(f"Loading {backbone}"):
        model = VideoClassifier.from_name(
            backbone,
            weights=weights,
            backbone_args=_json_object("--backbone-args", backbone_args),
            class_names=train_set.class_names,
            num_frames=num_frames,
            config=adapter if tune == "adapter" else None,
            tune=tune,
            temporal_pool=temporal_pool,
            head_dropout=head_dropout,
        )
    is_cached = cache_features is not None
    within = MemoryBudget(model, recipe, memory, approximate, memory_fallback, is_cached, say=words.print)
    size = model.preprocessing.size
    train_set.transform = TrainTransform(size, flip=flip, randaugment=randaugment)
    val_set.transform = EvalTransform(size)
    if cache_features is not None:
        train_set.transform = EvalTransform(size)
        model.to(_device("auto"))
        if within.recipe.memory_policy is not None:  # it may round the weights
            replace_memory_policy(model, within.recipe.memory_policy)
        options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        options["precision"] = within.recipe.precision
        train_set = cache(model, train_set, cache_features / "train", **options)
        val_set = cache(model, val_set, cache_features / "val", **options)
    if not (out / CHECKPOINT).exists():  # or it is that of the run that is resumed
        _write_settings(context, out)
    words.print(f"{len(train_set)} clips to train on, {len(val_set)} to validate, {len(train_set.class_names)} classes")
    words.print(trainable_summary(model))
    try:
        result = within.fit(train_set, val_set, out=out, resume=resume)
    except KeyboardInterrupt:
        if (out / CHECKPOINT).exists():
            words.print(f"The checkpoint in {out} is whole; the same command with --resume goes on from it.")
        raise
    last = result.history[-1]
    best = max(result.history, key=lambda entry: entry["uar"])
    for name, entry in (("last", last), ("best", best)):
        words.print(f"{name} epoch: UAR {entry['uar']:.1%}, WAR {entry['war']:.1%} on the validation split")
    words.print(f"Next: fe-adapter predict {out} VIDEO")


@app.command(
    epilog="Examples:\n\n  fe-adapter plan --backbone timm:vit_base_patch16_224 --num-frames 8 --memory 4GB\n\n"
    "  fe-adapter plan --backbone timm:vit_large_patch14_clip_224 --batch-size 4 --json --plot none"
)
def plan(
    backbone: Backbone,
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    batch_size: BatchSize = 8,
    accumulate: Annotated[int, typer.Option(help="Batches to one step.")] = 1,
    memory: Annotated[str | None, typer.Option(help="Budget, such as 8GB (GB is 2^30 bytes).")] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "bf16",
    optimizer: Annotated[str, typer.Option(help="adamw, sgd, or adamw8bit.")] = "adamw",
    cached: Annotated[bool, typer.Option("--cached", help="Train on tokens of --cache-features.")] = False,
    memory_policy: Annotated[
        list[str] | None, typer.Option(help="Count this policy, too, such as bf16+nf4+full:0-5; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu: whose behaviour is predicted; none is needed.")] = "cuda",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Also pick gelu2bit, whose gradients are approximate.")
    ] = False,
    backbone_args: BackboneArgs = "{}",
    bottleneck: Bottleneck = None,
    kernel_size: KernelSize = 3,
    dilation: Dilation = "dynamic",
    positions: Positions = "attn",
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
    adapter = _adapter(bottleneck, kernel_size, dilation, positions, last_blocks)
    args = _json_object("--backbone-args", backbone_args)
    with torch.device("meta"):
        model = VideoClassifier.from_name(
            backbone, num_classes=7, weights=None, backbone_args=args, num_frames=num_frames, config=adapter
        )
    with words.status("Counting") as status:
        found = plan_memory(
            model, batch_size, precision=precision, budget=budget, approximate=approximate, accumulate=accumulate,
            optimizer=optimizer, cached=cached, also=memory_policy or (), device=device,
            progress=lambda name: status.update(f"Counting {name}"),
        )  # fmt: skip
    if plot != "none":
        found.plot(plot)
        words.print(f"drawn in {plot}")
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    _print_plan(found, f"{backbone}, {batch_size} x {num_frames} frames, {precision}, {optimizer}, {device}: PREDICTED")
    words.print(found.advice)


def _print_plan(found: MemoryPlan, title: str) -> None:
    columns = ("", "weights", "gradients", "optimizer", "saved", "peak MiB", "of full", "step")
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    full = found.rows[0].estimate.peak
    for row in found.rows:
        e = row.estimate
        sizes = [f"{n / 2**20:,.0f}" for n in (e.parameters, e.gradients, e.optimizer, e.saved, e.peak)]
        style = "bold" if row is found.recommended else None
        table.add_row(row.name, *sizes, f"{e.peak / full:.2f}", f"{row.relative_cost:.2f}x", style=style)
    console = Console()
    console.width = max(console.width, 140)  # a name that is cut off is of no use in a file
    console.print(table)


@app.command("eval", epilog="Example:\n\n  fe-adapter eval run videos/ --split test")
def evaluate_command(
    run_folder: Run,
    data: Data,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else all of DATA.")] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default RUN/eval.")] = None,
    batch_size: BatchSize = 8,
    num_workers: Workers = 0,
    on_error: OnError = "fail",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Test a trained model on labelled videos: UAR, WAR, recall of each class, confusion matrix.

    Writes metrics.json, predictions.csv, confusion.csv and confusion.png.
    """
    from fe_adapter.data import open_dataset
    from fe_adapter.evaluate.run import evaluate
    from fe_adapter.sharing.folder import find_model

    model = load_classifier(find_model(run_folder), weights=weights).to(_device(device))
    sampling, stride, val_fraction = _trained_with(run_folder)
    dataset = open_dataset(
        data,
        split,
        class_names=model.class_names,
        sampler=FrameSampler(model.num_frames, sampling, stride),
        transform=EvalTransform(model.preprocessing.size),
        val_fraction=val_fraction,
        on_error=on_error,
    )
    evaluation = evaluate(model, dataset, batch_size=batch_size, num_workers=num_workers)
    folder = out or run_folder / "eval"
    evaluation.save(folder)
    metrics = evaluation.metrics
    if as_json:
        print(json.dumps(metrics.as_dict()))
    else:
        table = Table("class", "clips", "recall", title=f"UAR {metrics.uar:.1%}   WAR {metrics.war:.1%}")
        for name, row, recall in zip(metrics.class_names, metrics.confusion, metrics.recall.tolist(), strict=True):
            table.add_row(name, str(int(row.sum())), f"{recall:.1%}")
        Console().print(table)
    words.print(f"written to {folder}")


@app.command(epilog="Example:\n\n  fe-adapter predict run clip.mp4 other.mp4 --out predictions")
def predict(
    run_folder: Run,
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Video files of any length.")],
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    window: Annotated[
        float | None, typer.Option(help="Seconds looked at at a time; default the clips of training.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Seconds to the next look; default half a window.")] = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Class probabilities of video files.

    Writes for each file a JSON with the probabilities of the whole and of every window, the same as CSV, and a PNG with
    the timeline.
    """
    from fe_adapter.data import probe
    from fe_adapter.predict.result import output_stems
    from fe_adapter.predict.video import predict_video
    from fe_adapter.sharing.folder import find_model

    infos = [probe(path) for path in videos]  # a bad file is refused before anything is written
    model = load_classifier(find_model(run_folder), weights=weights).to(_device(device))
    predictions = [
        predict_video(model, info, window=window, step=step, batch_size=batch_size)
        for info in track(infos, "Predicting", console=words, transient=True)
    ]
    for prediction, stem in zip(predictions, output_stems([info.path for info in infos], out), strict=True):
        prediction.save(stem)
    if as_json:
        print(json.dumps([prediction.as_dict() for prediction in predictions]))
    else:
        table = Table("video", *model.class_names)
        for prediction in predictions:
            table.add_row(prediction.path, *(f"{p:.1%}" for p in prediction.probabilities.tolist()))
        Console().print(table)
    words.print(f"written to {out}")


@app.command(epilog="Example:\n\n  fe-adapter demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for videos, models and results.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Every step, in seconds: too short to learn.")] = False,
) -> None:
    """Render videos of faces, train adapters on them, and compare with what else one would try.

    An expression appears or fades: single frames do not tell which. Under five minutes on two CPU cores.
    """
    from fe_adapter.demo.run import run_demo

    run_demo(out, quick)


@app.command()
def env() -> None:
    """Print versions, devices and backends, for a bug report."""
    from fe_adapter.environment import describe_environment

    for name, value in describe_environment().items():
        print(f"{name}: {value}")


def _write_settings(context: typer.Context, out: Path) -> None:
    write_json(
        out / SETTINGS_FILE,
        {name: str(value) if isinstance(value, Path) else value for name, value in context.params.items()},
    )


def _trained_with(run_folder: Path) -> tuple[str, int, float]:
    """Sampling, stride and held-out share of a run; those of `train` by default where the folder is no run."""
    settings = run_folder / SETTINGS_FILE
    values = read_json(settings) if settings.exists() else {}
    if not isinstance(values, dict):
        raise InputError(f"{settings} is damaged: it holds no settings")
    found = values.get("sampling", "uniform"), values.get("stride", 4), values.get("val_fraction", 0.2)
    if not isinstance(found[0], str) or type(found[1]) is not int or not isinstance(found[2], float):
        raise InputError(f"{settings} is damaged: sampling, stride, val_fraction are {found}")
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a device that holds no values is of no use
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _precision(name: str) -> str:
    if name != "auto":
        return name
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _adapter(
    bottleneck: int | None,
    kernel_size: int,
    dilation: str,
    positions: str,
    last_blocks: int | None,
    recompute: str | None = None,
) -> FEAdapterConfig:
    return FEAdapterConfig(
        bottleneck=bottleneck,
        kernel_size=kernel_size,
        dilation=int(dilation) if dilation.isdecimal() else dilation,
        positions=tuple(positions.split(",")),
        blocks=None if last_blocks is None else tuple(range(-check_count("--last-blocks", last_blocks, 1), 0)),
        recompute=recompute,
    )


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f'{option} {text!r} is no JSON object such as {{"img_size": 96}}')
    return value
