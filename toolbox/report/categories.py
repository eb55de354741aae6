"""The picture of a bias suite: its main figure by category, before and after (`evaluate`, `runs report`)."""

from collections.abc import Sequence
from typing import Any

from toolbox.i18n import _
from toolbox.report.charts import Category, dumbbell_chart
from toolbox.suites.kind import Picture

MOST_ROWS = 24
"""Of more categories the outermost are drawn; all of them stand in the suite's file."""


def categories_chart(picture: Picture, tables: Sequence[Sequence[dict[str, Any]]]) -> str:
    """An SVG of one model's categories, or of two models' (base, tuned); the highest value stands on top."""
    after = {row["category"]: row["value"] for row in tables[-1]} if len(tables) > 1 else {}
    rows = sorted(tables[0], key=lambda row: -row["value"])
    if len(rows) > MOST_ROWS:
        furthest = sorted(rows, key=lambda row: -abs(row["value"] - picture.even))[:MOST_ROWS]
        rows = [row for row in rows if row in furthest]
    left, right = (_(end) if end else "" for end in picture.ends)
    return dumbbell_chart(
        _(picture.title),
        [
            Category(_name(picture, row["category"]), row["value"], after.get(row["category"]), row.get("known"))
            for row in rows
        ],
        _("base"),
        _("tuned"),
        _(picture.axis),
        domain=picture.domain,
        reference=picture.even,
        percent=picture.percent,
        known_label=_(picture.known) if picture.known else "",
        ends=(left, right),
    )


def _name(picture: Picture, category: str) -> str:
    known = picture.names.get(category)
    return _(known) if known else category
