"""What commands share: options, and what becomes of their values."""

from __future__ import annotations

import dataclasses
import json
import os
import reprlib
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fe_adapter.checks import MAX_BLOCKS, check_count
from fe_adapter.cli.fields import Fields
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data.layouts import LAYOUTS
from fe_adapter.errors import InputError, first_line

ADAPTER_FIELDS = ("bottleneck", "kernel_size", "dilation", "max_dilation", "causal", "positions")
# names of files and classes are no markup, and their paths stay in one line
_PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
words = Console(
    stderr=True, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0", **_PLAIN
)  # of several, the first


def show(table: Table) -> None:
    """Print a table of results on stdout."""
    Console(**_PLAIN).print(table)


Data = Annotated[
    Path,
    typer.Argument(
        help="Folder with a folder of videos per class, a CSV with path,label, ranges marked in videos (a CSV with "
        "path,start,end,label, .srt, .vtt, .eaf), or a published data set: "
        + ", ".join(f"{name}:ROOT" for name in LAYOUTS)
        + "."
    ),
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="What train wrote, an adapter folder, or hub:OWNER/NAME[@REVISION].")
]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, if they moved: FILE, FOLDER, pretrained or none.")
]
Backbone = Annotated[str, typer.Option(help="timm:NAME, hf:NAME, openclip:NAME/TAG or torchvision:NAME.")]
BackboneArgs = Annotated[str, typer.Option(help="""More for the backbone, as JSON: '{"img_size": 96}'.""")]
LastBlocks = Annotated[
    int | None, typer.Option(help="Adapters in the last K blocks; default all.", rich_help_panel="Adapter")
]
Adapter = Annotated[FEAdapterConfig, Fields("Adapter", only=ADAPTER_FIELDS)]
Precision = Annotated[str, typer.Option(help="no, bf16, fp16, or auto: bf16 where a GPU has it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


def use_config_file(context: typer.Context, file: Path | None) -> Path | None:
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
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no TOML file: {error}") from None
    known = {parameter.name for parameter in context.command.params} - {"config", "data", "resume"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{file} sets {unknown[0]!r}, which is no option; options are {', '.join(sorted(known))}")
    context.default_map = {name: _as_option(value) for name, value in values.items()}
    for parameter in context.command.params:
        if parameter.name in context.default_map:
            try:
                parameter.process_value(context, context.default_map[parameter.name])
            except typer.BadParameter as error:
                raise InputError(f"{file}: {error.format_message()}") from None
    return file


ConfigFile = Annotated[
    Path | None,
    typer.Option(callback=use_config_file, is_eager=True, help="TOML file with values for these options."),
]


def _as_option(value: Any) -> Any:
    """A TOML value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()  # or true would be the number 1
    if isinstance(value, list):
        separator = ";" if any(isinstance(item, list) for item in value) else ","
        return separator.join(str(_as_option(item)) for item in value)
    return json.dumps(value) if isinstance(value, dict) else value


def in_last_blocks(adapter: FEAdapterConfig, last_blocks: int | None) -> FEAdapterConfig:
    """``adapter`` in as many blocks; None is all."""
    if last_blocks is None:
        return adapter
    return dataclasses.replace(
        adapter, blocks=tuple(range(-check_count("--last-blocks", last_blocks, 1, MAX_BLOCKS), 0))
    )


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a device that holds no values is of no use
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {first_line(error)}") from None
    return device


def read_json_object(option: str, text: str) -> dict[str, Any]:
    """The JSON object that ``option`` was given."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option} {reprlib.repr(text)} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f'{option} {text!r} is no JSON object such as {{"img_size": 96}}')
    return value
