"""Temperatures, calibration errors and risk–coverage curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fe_adapter.evaluate import calibration
from fe_adapter.files import write_figure


def drawn(n=20000, C=4, seed=0):
    """Probabilities, and labels drawn from them: calibrated by construction."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(n, C, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    return p, torch.multinomial(p, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("distortion", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_distortion(distortion):
    p, labels = drawn()
    distorted = (p.log() * distortion).softmax(-1)  # of logits that are too large by that factor
    # 20,000 labels fix the inverse temperature to about 1 %
    assert calibration.fit_temperature(distorted, labels) == pytest.approx(distortion, rel=0.05)
    repaired = (distorted.log() / calibration.fit_temperature(distorted, labels)).softmax(-1)
    # a bin of a fifteenth of the clips has an accuracy known to 1.4 %; the mean of the gaps is within that
    assert calibration.expected_calibration_error(repaired, labels) < 0.015
    if distortion != 1:
        assert calibration.expected_calibration_error(distorted, labels) > 0.05


def test_a_temperature_needs_clips_and_has_bounds():
    certain = torch.tensor([[0.9, 0.1]]).double()
    assert calibration.fit_temperature(certain.expand(19, 2), torch.zeros(19, dtype=torch.long)) == 1
    assert calibration.fit_temperature(certain.expand(20, 2), torch.zeros(20, dtype=torch.long)) == pytest.approx(0.1)
    assert calibration.fit_temperature(certain.expand(20, 2), torch.ones(20, dtype=torch.long)) == pytest.approx(10)
    exact = torch.tensor([[1.0, 0.0]]).expand(30, 2)
    assert np.isfinite(calibration.fit_temperature(exact, torch.tensor([0, 1] * 15)))


def test_calibration_error_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.45, 0.55]])
    labels = torch.tensor([0, 1, 1, 1])
    assert calibration.expected_calibration_error(p, labels) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert calibration.expected_calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def test_risk_and_coverage_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 0])  # the least confident two are wrong
    curve = calibration.risk_coverage(p, labels)
    assert curve[:, 0].tolist() == [0.25, 0.5, 0.75, 1]
    assert curve[:, 1].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve[:, 2].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert calibration.area_under_risk_coverage(p, labels) == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_the_picture_is_drawn(tmp_path):
    write_figure(calibration.draw_calibration(*drawn(200)), tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
