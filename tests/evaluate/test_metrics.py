"""UAR, WAR and the confusion matrix, by hand and as files."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from fe_adapter.evaluate.metrics import Metrics, confusion_matrix


def test_by_hand():
    labels, predictions = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0])
    metrics = Metrics(confusion_matrix(labels, predictions, 2), ("a", "b"))
    assert metrics.confusion.tolist() == [[3, 1], [1, 1]]
    assert metrics.confusion.dtype == torch.int64
    assert metrics.war == pytest.approx(4 / 6)
    assert metrics.uar == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_a_class_that_is_absent_has_no_recall_and_no_weight():
    metrics = Metrics(confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 3), ("a", "b", "c"))
    assert metrics.recall.isnan().tolist() == [False, True, False]
    assert metrics.uar == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.as_dict()["recall"] == {"a": 0.5, "b": None, "c": 1.0}


def test_files(tmp_path):
    metrics = Metrics(torch.tensor([[3, 1], [0, 2]]), ("calm, mostly", "happy"))
    metrics.save(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics.as_dict()
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert rows == [["true \\ predicted", "calm, mostly", "happy"], ["calm, mostly", "3", "1"], ["happy", "0", "2"]]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
