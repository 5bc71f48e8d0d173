"""Published data sets in miniature: the layouts as they are on people's disks, with their traps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fe_adapter.data.layouts import dfew, mafw, ravdess
from tests.videos import make_video

openpyxl = pytest.importorskip("openpyxl")
Image = pytest.importorskip("PIL.Image")
SIZE = (48, 48)


def make_frames(folder: Path, levels: Sequence[int] = range(0, 60, 10), names: str = "{}.jpg", size=SIZE) -> Path:
    """A folder of grey frames, named by numbers from 1 on; a corner of them is of the folder alone."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = list(zlib.crc32(str(folder).encode()).to_bytes(4, "big")[:3])
    for number, level in enumerate(levels, 1):
        pixels = np.full((*size, 3), level, dtype=np.uint8)
        pixels[:4, :4] = mark
        Image.fromarray(pixels).save(folder / names.format(number))
    return folder


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def make_dfew(root: Path, base: int = 1) -> Path:
    """Five clips of each class, one of them tested on in each fold: in the first one, 29 to 35, in the classes' order.

    Numbers lost their zeros; frames are 1.jpg to 11.jpg, which sort wrongly as text.
    """
    classes, folds = len(dfew.LAYOUT.class_names), 5
    clips = [(i * classes + c + 1, c + base, i) for i in range(folds) for c in range(classes)]
    for number, _, _ in clips:
        make_frames(root / f"Clip/clip_224x224_16f/{number:05d}", range(0, 110, 10))
    for k in range(1, folds + 1):
        for split in ("train", "test"):
            chosen = [clip for clip in clips if (clip[2] == (k + folds - 2) % folds) == (split == "test")]
            rows = ["video_name,label", *(f"{number},{label}" for number, label, _ in chosen)]
            write(root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{k}.csv", "\n".join(rows) + "\n")
    book = openpyxl.Workbook()
    book.active.append(["order", *(f"{i}{name}" for i, name in enumerate(dfew.LAYOUT.class_names, 1)), "label"])
    for number, label, _ in clips:  # of ten people three saw the class after its own
        own = label - base
        votes = [7 if i == own else 3 if i == (own + 1) % classes else 0 for i in range(classes)]
        book.active.append([number, *votes, own + 1])
    (root / "Annotation").mkdir()
    book.save(root / "Annotation" / "annotation.xlsx")
    return root


def make_ferv39k(root: Path) -> Path:
    """One id in many scenes and classes; blanks between, no header; fewer than 16 frames."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for name in ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"):
        for i, scene in enumerate(("Action", "Argue", "War", "Crime", "Social")):
            make_frames(root / f"2_ClipsforFaceCrop/{scene}/{name}/0267")
            lines["test" if i == 0 else "train"].append(f"{scene}/{name}/0267 {name}")
    for split, rows in lines.items():
        write(root / f"4_setups/All_scenes/{split}_All.csv", "\n".join(rows))
    return root


def make_mafw(root: Path) -> Path:
    """Folders with blanks and an ampersand; CRLF; no newline at the end; names end in .mp4 where frames are; GBK."""
    number = 0
    single = root / "Train & Test Set/single"
    for split, count in (("train", 4), ("test", 1)):
        rows = []
        for label in mafw.CLASSES:
            for _ in range(count):
                number += 1
                make_frames(root / f"data/faces/{number:05d}", names="{:05d}.png")
                rows.append((f"{number:05d}.mp4", label))
        write(single / f"no_caption/set_1/{split}.txt", "\r\n".join(f"{name} {label}" for name, label in rows))
        captions = [f"{name}\t{label}\t一个人在笑\tA person smiles" for name, label in rows]
        write(single / f"with_caption/set_1/{split}.txt", "\r\n".join(captions), "gb18030")
    write(root / "Train & Test Set/compound/no_caption/set_1/train.txt", "00001.mp4 anger_disgust\r\n")
    return root


def make_cremad(root: Path) -> Path:
    for actor in (1001, 1019, 1037, 1055, 1073):
        for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            make_video(root / f"VideoFlash/{actor}_DFA_{code}_XX.flv", 6, SIZE, codec="flv", title=f"{actor} {code}")
    return root


def make_ravdess(root: Path) -> Path:
    """The same performance with sound and without, song, and sound alone."""
    for actor in (1, 5, 9):
        for emotion in range(1, len(ravdess.CLASSES) + 1):
            for modality in ("01", "02"):
                name = f"{modality}-01-{emotion:02d}-01-01-01-{actor:02d}"
                make_frames(root / f"Actor_{actor:02d}/{name}")
    make_frames(root / "Actor_01/02-02-03-01-01-01-01")
    return root


def make_afew(root: Path) -> Path:
    """Ids that several classes have; videos beside folders of frames."""
    for split, ids in (("Train", range(4)), ("Val", range(4, 6))):
        for name in ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"):
            for i in ids:
                if i % 2:
                    make_frames(root / f"{split}/{name}/{i:09d}", names="{:03d}.jpg")
                else:
                    make_video(
                        root / f"{split}/{name}/{i:09d}.avi", 6, SIZE, codec="mpeg4", title=f"{split} {name} {i}"
                    )
    return root


def make_lists(root: Path) -> Path:
    """Paths with blanks in them, frames between, as TSN has it."""
    for split, ids in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
        rows = []
        for i in ids:
            make_frames(root / f"clips/a person {i}")
            rows.append(f"clips/a person {i} 6 {i % 2}")
        write(root / f"{split}_videofolder.txt", "\n".join(rows) + "\n")
    write(root / "classes.txt", "calm\nglad\n")
    return root


MAKERS = {
    "dfew": (make_dfew, 1), "ferv39k": (make_ferv39k, None), "mafw": (make_mafw, 1), "cremad": (make_cremad, 2),
    "ravdess": (make_ravdess, 1), "afew": (make_afew, None), "list": (make_lists, None),
}  # fmt: skip
