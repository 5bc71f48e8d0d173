"""Tables of results that several commands print."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from fe_adapter.cli.options import show
from fe_adapter.evaluate.published import published
from fe_adapter.evaluate.run import Evaluation
from fe_adapter.files import printable


def show_recalls(evaluation: Evaluation) -> None:
    """UAR, WAR and their intervals, the calibration error, and the recall of every class."""
    metrics, figures = evaluation.metrics, evaluation.as_dict()
    (a, b), (c, d) = metrics.interval("uar"), metrics.interval("war")
    title = f"UAR {metrics.uar:.1%} ({a:.1%} to {b:.1%})   WAR {metrics.war:.1%} ({c:.1%} to {d:.1%})"
    table = Table("class", "clips", "recall", title=title)
    for name, row, recall in zip(metrics.class_names, metrics.confusion, metrics.recall.tolist(), strict=True):
        table.add_row(printable(name), str(int(row.sum())), f"{recall:.1%}")
    show(table)
    print(f"ECE {figures['ece']:.1%}   area under risk-coverage {figures['aurc']:.3f}")
    print("in parentheses: 95 % of bootstrap draws of the clips")


def show_published(layout: str | None, own: Iterable[tuple[str, float, float]]) -> None:
    """Our rows, ``(name, uar, war)`` in [0, 1], below the published ones of the data set, if there are any."""
    rows = published(layout)
    if not rows:
        return
    caption = "published recipes mostly chose the epoch on the test split; their backbones saw different faces before"
    table = Table("published", "UAR", "WAR", "source", caption=caption)
    for row in rows:
        table.add_row(row.method, f"{row.uar:.2f}", f"{row.war:.2f}", row.source)
    table.add_section()
    for name, uar, war in own:
        table.add_row(printable(name), f"{uar:.2%}".rstrip("%"), f"{war:.2%}".rstrip("%"), "this run")
    show(table)
