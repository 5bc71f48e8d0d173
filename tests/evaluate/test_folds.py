"""Folds together, and the figures of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fe_adapter.data.layouts import LAYOUTS
from fe_adapter.evaluate import FoldSummary, Metrics
from fe_adapter.evaluate.published import PER_FOLD, published

FOLDS = FoldSummary(tuple(Metrics(torch.tensor(m), ("a", "b")) for m in ([[3, 1], [1, 1]], [[8, 2], [0, 2]])))


@pytest.mark.parametrize(("method", "layout"), PER_FOLD)
def test_published_means_are_those_of_the_published_folds(method, layout):
    (row,) = [row for row in published(layout) if row.method == method]
    # figures of two decimals: their mean is right to half of the last one, and so is the published mean
    assert np.mean(PER_FOLD[method, layout], axis=0) == pytest.approx([row.uar, row.war], abs=0.01)
    assert len(PER_FOLD[method, layout]) == LAYOUTS[layout].num_folds


def test_every_row_is_plausible_and_says_its_source():
    for layout in ("dfew", "ferv39k", "mafw"):
        for row in published(layout):
            assert 20 < row.uar < row.war < 80
            assert row.source
    assert published("afew") == published(None) == []


def test_mean_and_pooled_are_different_figures(tmp_path):
    assert FOLDS.mean("uar") == pytest.approx(np.mean([(3 / 4 + 1 / 2) / 2, (8 / 10 + 1) / 2]))
    assert FOLDS.mean("war") == pytest.approx(np.mean([4 / 6, 10 / 12]))
    assert FOLDS.deviation("war") == pytest.approx(np.std([4 / 6, 10 / 12], ddof=1))
    assert FOLDS.pooled.confusion.tolist() == [[11, 3], [1, 3]]
    assert FOLDS.pooled.war == pytest.approx(14 / 18)
    low, high = FOLDS.interval("war")
    assert low < FOLDS.mean("war") < high
    FOLDS.save(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mean_uar"] == FOLDS.mean("uar")
    assert summary["pooled_uar"] == FOLDS.pooled.uar != summary["mean_uar"]
    assert (tmp_path / "folds.csv").read_text().splitlines()[1:] == ["1,6,0.625000,0.666667", "2,12,0.900000,0.833333"]
    assert (tmp_path / "pooled/confusion.png").exists()


def test_a_single_fold_has_no_deviation():
    assert json.loads(json.dumps(FoldSummary(FOLDS.folds[:1]).as_dict()))["sd_uar"] is None
