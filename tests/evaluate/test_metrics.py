"""UAR, WAR and the confusion matrix, by hand and as files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from fe_adapter import files
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


def test_intervals_are_those_of_drawing_clips():
    confusion = torch.tensor([[30, 10, 0], [5, 15, 0], [0, 0, 0]])  # nobody is of the third class
    random = np.random.default_rng(1)
    labels = torch.tensor([0] * 40 + [1] * 20)
    predictions = torch.tensor([0] * 30 + [1] * 10 + [0] * 5 + [1] * 15)
    drawn = [torch.from_numpy(random.integers(0, 60, 60)) for _ in range(2000)]
    direct = [Metrics(confusion_matrix(labels[i], predictions[i], 3), ("a", "b", "c")) for i in drawn]
    metrics = Metrics(confusion, ("a", "b", "c"))
    for name in ("uar", "war"):
        expected = np.quantile([getattr(m, name) for m in direct], (0.025, 0.975))
        # a quantile of 2,000 draws of a deviation of about 0.06 is within 0.01 of that of others
        assert metrics.interval(name) == pytest.approx(expected.tolist(), abs=0.02)
    assert metrics.interval("war") == metrics.interval("war")
    assert Metrics(torch.diag(torch.tensor([5, 5])), ("a", "b")).interval("uar") == (1, 1)


def test_files(tmp_path):
    metrics = Metrics(torch.tensor([[3, 1], [0, 2]]), ("calm, mostly", "happy"))
    metrics.save(tmp_path)
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert rows == [["true \\ predicted", "calm, mostly", "happy"], ["calm, mostly", "3", "1"], ["happy", "0", "2"]]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_names_in_other_scripts_take_any_font_that_has_them(tmp_path, caplog, recwarn):
    """Matplotlib brings a font with script letters, which its default font has not."""
    pytest.importorskip("matplotlib")
    figure, axes = files.new_figure(4, 1)
    letters = axes.text(0, 0, "\U0001d49e\U0001d49f")
    files.write_figure(figure, tmp_path / "letters.png")
    assert len(letters.get_fontfamily()) == 2
    assert not caplog.text
    assert not recwarn.list


@pytest.mark.parametrize("times", [1, 2])
def test_boxes_for_what_no_font_has_are_said_once(times, tmp_path, caplog, monkeypatch):
    font_manager = pytest.importorskip("matplotlib.font_manager")
    known = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
    for cached in (files._say_that_boxes_are_shown, files._fonts_with):
        cached.cache_clear()
    for i in range(times):
        metrics = Metrics(torch.tensor([[3, 1], [0, 2]]), ("悲しみ", f"喜{'び' * i}"))
        metrics.save(tmp_path)
    files._fonts_with.cache_clear()
    assert caplog.text.count("no installed font has some characters of the names") == 1
