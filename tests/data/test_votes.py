"""Soft labels: shares of people's votes in the place of one label."""

from __future__ import annotations

import pytest
import torch

from fe_adapter.cli import app as cli
from fe_adapter.data import Feed, FrameSampler, open_dataset
from fe_adapter.errors import InputError
from tests.published import make_dfew, make_frames, make_ravdess, openpyxl, write

BACKBONE = ["--backbone", "timm:vit_tiny_patch16_224", "--weights", "none"]
BACKBONE += ["--backbone-args", '{"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}']
FAST = ["--num-frames", "2", "--batch-size", "8", "--max-epochs", "1", "--no-randaugment", "--tracker", "none"]


def opened(data, split="train", **options):
    return open_dataset(data, split, sampler=FrameSampler(2), soft_labels=True, **options)


@pytest.fixture
def dfew(tmp_path):
    return make_dfew(tmp_path / "DFEW")


def test_votes_of_dfew(dfew, tmp_path):
    dataset = opened(f"dfew:{dfew}", fold=1)
    item = dataset[0]
    expected = torch.zeros(7)
    expected[item["label"]], expected[(item["label"] + 1) % 7] = 0.7, 0.3
    torch.testing.assert_close(item["target"], expected)
    assert "target" not in opened(f"dfew:{dfew}", "val", fold=1)[0]  # what is tested is one label
    names = ("fear", "surprised", "anger", "happiness", "sadness", "neutral", "disgust")
    other = opened(f"dfew:{dfew}", fold=1, class_names=names)[0]
    assert {names[i]: round(p, 1) for i, p in enumerate(other["target"].tolist()) if p} == {
        names[other["label"]]: 0.7,
        {"happiness": "sadness"}.get(names[other["label"]], "?"): 0.3,
    }
    out = tmp_path / "run"
    assert cli.run(["train", f"dfew:{dfew}", "--fold", "1", "--soft-labels", *BACKBONE, *FAST, "--out", str(out)]) == 0


@pytest.fixture
def table(tmp_path):
    for i in range(6):
        make_frames(tmp_path / f"clips/{i}")
    rows = [f"clips/{i},{('Calm', 'Glad')[i % 2]},{4 - i % 2},{i % 2 + 1}" for i in range(6)]
    return write(tmp_path / "list.csv", "\n".join(["path,label,calm,glad", *rows]))


def test_votes_of_a_csv_with_a_column_for_every_class(table):
    dataset = opened(table)
    for item in dataset:
        expected = ([4 / 5, 1 / 5], [3 / 5, 2 / 5])[item["label"]]
        assert item["target"].tolist() == pytest.approx(expected)


def test_votes_that_are_none_are_refused(table, tmp_path, dfew):
    text = table.read_text()
    for content, message in (
        (text.replace("calm,glad", "calm,other"), "has no column of votes for Glad; soft labels need one for every"),
        (text.replace(",4,1", ",x,1"), "line 2: a vote is no number"),
        (text.replace(",4,1", ",-4,1"), "votes -4.0, 1.0 are no counts of people"),
        (text.replace(",4,1", ",0,0"), "votes 0.0, 0.0 are no counts of people"),
        (text.replace(",4,1", ",nan,1"), "are no counts of people"),
    ):
        write(table, content)
        with pytest.raises(InputError, match=message):
            opened(table)
    with pytest.raises(InputError, match="soft labels need a CSV with a column of votes for every class, or dfew:ROOT"):
        opened(tmp_path / "DFEW" / "Clip")
    with pytest.raises(InputError, match="RAVDESS has no votes of people"):
        opened(f"ravdess:{make_ravdess(tmp_path / 'R')}", fold=1)
    book = openpyxl.load_workbook(dfew / "Annotation/annotation.xlsx")
    book.active.delete_rows(2)
    book.save(dfew / "Annotation/annotation.xlsx")
    with pytest.raises(InputError, match=r"has no votes for 1 clips: .*00001"):
        opened(f"dfew:{dfew}", fold=1)
    for content in (b"", b"no workbook", b"PK\3\4"):
        (dfew / "Annotation/annotation.xlsx").write_bytes(content)
        with pytest.raises(InputError, match="is not the published table of votes"):
            opened(f"dfew:{dfew}", fold=1)


def test_targets_come_with_the_batches_of_a_feed(table):
    dataset = opened(table)
    batches = list(Feed(dataset, 3, num_workers=0).epoch(0))
    assert torch.equal(torch.cat([batch["target"] for batch in batches]), dataset.targets)
