"""A case that computes nothing, for the tests of what runs cases."""

from __future__ import annotations

import pytest

from bench.measure.case import Point, Provider
from bench.measure.harness import Contender
from bench.suite import run as suite


class Toy:
    """A case that computes nothing."""

    BASELINE = "rival"

    def __init__(self, **changes: Provider) -> None:
        self.changes = changes

    def points(self, device, quick):
        return [Point({"B": B}, rounds=3) for B in (1, 2, 4)]

    def providers(self, point, device):
        contender = Contender(lambda _: None, memory=lambda: {"peak": 2**20})
        return {name: Provider(lambda: contender, name) for name in ("rival", "ours")} | self.changes


@pytest.fixture
def toy(monkeypatch):
    """The only case there is; ours takes three times as long as its rival."""
    case = Toy()
    monkeypatch.setattr(suite, "get_cases", lambda: {"toy": case})
    times = {"rival": [2e-3, 2.1e-3, 2.2e-3, 2e-3, 2.1e-3], "ours": [6e-3, 6.3e-3, 6.6e-3, 6e-3, 6.3e-3]}
    monkeypatch.setattr("bench.measure.case.in_turns", lambda *_: times)
    return case
