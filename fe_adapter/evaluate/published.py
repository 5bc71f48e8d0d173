"""What was published, to print beside one's own: UAR and WAR in percent, and where each figure is written.

They rank no adapters: backbones differ in what they were pretrained on, and most of these recipes chose the epoch on
the test fold. DFEW and MAFW are means over five folds, FERV39k is the official split.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row of somebody's table; ``uar`` and ``war`` in percent, ``source`` says whose table."""

    method: str
    uar: float
    war: float
    source: str


_FRU = "FRU-Adapter's Table 1"
_BOTH = "FRU-Adapter's and DFER-CLIP's tables"
_DFERCLIP, _MAEDFER, _S2D, _OWN = "DFER-CLIP's table", "MAE-DFER's README", "S2D's README", "FRU-Adapter's README"
_ROWS: tuple[tuple[str, str, dict[str, tuple[float, float]]], ...] = (
    ("C3D", _BOTH, {"dfew": (42.74, 53.54), "ferv39k": (22.68, 31.69), "mafw": (31.17, 42.25)}),
    ("R(2+1)D-18", _BOTH, {"dfew": (42.79, 53.22), "ferv39k": (31.55, 41.28)}),
    ("ResNet18+LSTM", _BOTH, {"dfew": (51.32, 63.85), "ferv39k": (30.92, 42.95), "mafw": (28.08, 39.38)}),
    ("Former-DFER", _BOTH, {"dfew": (53.69, 65.70), "ferv39k": (37.20, 46.85), "mafw": (31.16, 43.27)}),
    ("IAL", _BOTH, {"dfew": (55.71, 69.24), "ferv39k": (35.82, 48.54)}),
    ("M3DFEL", _BOTH, {"dfew": (56.10, 69.25), "ferv39k": (35.94, 47.67)}),
    ("CLIPER", _DFERCLIP, {"dfew": (57.56, 70.84), "ferv39k": (41.23, 51.34)}),
    (
        "DFER-CLIP",
        "DFER-CLIP's repository",
        {"dfew": (59.61, 71.25), "ferv39k": (41.27, 51.65), "mafw": (39.89, 52.55)},
    ),
    ("FE-Adapter", _FRU, {"dfew": (60.89, 73.67), "ferv39k": (41.44, 52.11), "mafw": (39.41, 55.02)}),
    ("MAE-DFER, 2 clips", _MAEDFER, {"dfew": (63.41, 74.43), "ferv39k": (43.12, 52.07), "mafw": (41.62, 54.31)}),
    ("MAE-DFER, 2 clips, run again", _MAEDFER, {"ferv39k": (43.29, 52.50), "mafw": (42.36, 55.03)}),
    ("S2D", _FRU, {"dfew": (62.57, 75.98), "ferv39k": (40.89, 51.83), "mafw": (39.87, 56.20)}),
    ("S2D, 2 clips", _S2D, {"dfew": (61.82, 76.03), "ferv39k": (41.28, 52.56), "mafw": (41.86, 57.37)}),
    ("S2D, 2 clips, oversampled", _S2D, {"dfew": (65.45, 74.81), "ferv39k": (43.97, 46.21), "mafw": (43.40, 55.22)}),
    ("FRU-Adapter", _OWN, {"dfew": (66.02, 76.96), "ferv39k": (38.65, 50.12), "mafw": (42.80, 57.83)}),
    ("FRU-Adapter, 2 clips", _OWN, {"dfew": (65.88, 76.98), "ferv39k": (41.08, 52.70), "mafw": (44.54, 59.33)}),
)
PER_FOLD: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("S2D, 2 clips", "dfew"): ((61.56, 76.16), (59.93, 73.99), (61.33, 76.41), (62.75, 76.31), (63.51, 77.27)),
    ("S2D, 2 clips", "mafw"): ((32.78, 46.76), (40.43, 55.96), (47.01, 62.08), (45.66, 62.61), (43.45, 59.42)),
}


def published(layout: str | None) -> list[Published]:
    """The rows for a data set by its name, such as "dfew"; none of others."""
    return [Published(method, *on[layout], source) for method, source, on in _ROWS if layout in on]
