"""``fe-adapter data``: look at data before training on it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fe_adapter.cli.fields import Fields
from fe_adapter.cli.options import Data, show, words
from fe_adapter.data.faces import FaceOptions
from fe_adapter.data.recipe import ClipRecipe
from fe_adapter.errors import some
from fe_adapter.files import check_folder, printable

PACK_EXAMPLES = ("fe-adapter data pack videos/ packed", "fe-adapter data pack dfew:DFEW packed --size 224")
FIELDS = ("fold", "frames_folder", "lists_folder", "window", "background", "split_by", "tier", "val_fraction")
EXAMPLES = (
    "fe-adapter data check videos/",
    "fe-adapter data check videos/ --faces largest",
    "fe-adapter data check dfew:DFEW --content --out check",
)


def check(
    *,
    data: Data,
    clips: Annotated[ClipRecipe, Fields(only=FIELDS)],
    subset: Annotated[
        bool, typer.Option("--subset", help="It is a part of a published data set, whose counts are others.")
    ] = False,
    content: Annotated[
        bool, typer.Option("--content", help="Decode every frame, and find the same content under two names.")
    ] = False,
    faces: Annotated[FaceOptions, Fields("Faces", only=("faces", "face_model", "face_detection_size", "face_cache"))],
    out: Annotated[Path, typer.Option(help="Folder for the report and the pictures.")] = Path("data-check"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Look at all of a data set: clips per class and split, what is missing, unreadable, mislabelled or leaked.

    Published data sets are compared with their published counts. Writes check.json, contact_sheet.png and
    histograms.png, with --faces largest faces.png as well; exits with 1 where something is off.
    """
    from fe_adapter.data.check import check_data
    from fe_adapter.data.layouts import Where

    check_folder(out)
    where = Where(clips.frames_folder, clips.lists_folder)
    recipe = faces.for_one_face()
    report = check_data(
        data,
        fold=clips.fold,
        where=where,
        is_subset=subset,
        content=content,
        faces=recipe,
        face_cache=faces.cache,
        cutting=clips.cutting(),
        val_fraction=clips.val_fraction,
    )
    report.save(out)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        for fold, splits in report.counts.items():
            if not splits:
                continue
            table = Table("class", *splits, title=f"fold {fold}" if fold else None)
            for name in dict.fromkeys(name for by_class in splits.values() for name in by_class):
                table.add_row(printable(name), *(f"{by_class.get(name, 0):,}" for by_class in splits.values()))
            table.add_row("all", *(f"{sum(by_class.values()):,}" for by_class in splits.values()))
            show(table)
    for note in report.notes:
        words.print(f"note: {printable(note)}")
    for finding in report.findings:
        names = f": {some(finding.names)}" if finding.names else ""
        line = textwrap.shorten(printable(finding.message + names), 500, placeholder=" …")  # the JSON has them all
        words.print(f"{finding.kind}: {line}")
    words.print(f"{len(report.findings) or 'no'} findings; written to {out}")
    if report.findings:
        raise typer.Exit(1)


def pack(
    *,
    data: Data,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pack, then given in the place of DATA.")],
    clips: Annotated[ClipRecipe, Fields(only=(*FIELDS, "soft_labels"))],
    size: Annotated[int, typer.Option(help="Pixels of the shorter side; 0 keeps frames as they are.")] = 256,
    codec: Annotated[str, typer.Option(help="jpeg, or raw: no loss, and ten times the room.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of JPEG, 1 to 100.")] = 95,
    max_frames: Annotated[int | None, typer.Option(help="Of a video, evenly spaced; default all.")] = None,
) -> None:
    """Decode every video once into small frames, which train and eval then read without decoding videos.

    Says how much it will write, and refuses where that does not fit; interrupted, the same command goes on.
    """
    from fe_adapter.data.layouts import Where
    from fe_adapter.data.pack import pack_data

    check_folder(out)
    made = pack_data(
        data,
        out,
        fold=clips.fold,
        where=Where(clips.frames_folder, clips.lists_folder),
        cutting=clips.cutting(),
        val_fraction=clips.val_fraction,
        soft_labels=clips.soft_labels,
        size=size or None,
        codec=codec,
        quality=quality,
        max_frames=max_frames,
        say=words.print,
    )
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    words.print(f"{len(made.videos)} videos, {written / 2**20:,.0f} MiB, in {out}; give it in the place of {data}")
