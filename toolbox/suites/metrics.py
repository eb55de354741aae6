"""What a figure of an evaluation is called, and which value of it is the best (`evaluate`)."""

import math
from typing import Any

import msgspec

from toolbox.i18n import _

SIGNIFICANT = 0.05
"""The p up to which a difference is more than chance."""


class Metric(msgspec.Struct, frozen=True):
    """`ideal`: `math.inf` where more is better, `-math.inf` where less is, else the value itself: 0 of a bias that has
    two directions, 50 of StereoSet's stereotype score."""

    label: str
    """For people, in English; `title` translates it."""
    ideal: float

    @property
    def title(self) -> str:
        """The name in the person's language, with an arrow to the ideal."""
        if math.isinf(self.ideal):
            return f"{_(self.label)} {'↑' if self.ideal > 0 else '↓'}"
        return f"{_(self.label)} → {self.ideal:g}"

    @property
    def told(self) -> str | float:
        """The ideal as results state it, since JSON knows no infinity: "high", "low", or the number."""
        return self.ideal if math.isfinite(self.ideal) else "high" if self.ideal > 0 else "low"


def verdict(line: dict[str, dict[str, Any]]) -> str:
    """chance, better or worse, by the rows `base`, `tuned` and `difference` of a metric's results.

    It is chance where the interval of the paired difference holds zero, or where the paired test, adjusted for all that
    was tested beside it, does; else what is nearer to the ideal is better.
    """
    difference = line["difference"]
    if difference["low"] <= 0 <= difference["high"] or difference.get("p_holm", 0.0) > SIGNIFICANT:
        return "chance"
    goal = ideal(difference)
    if math.isinf(goal):
        return "better" if (difference["value"] > 0) == (goal > 0) else "worse"
    return "better" if abs(line["tuned"]["value"] - goal) < abs(line["base"]["value"] - goal) else "worse"


def ideal(row: dict[str, Any]) -> float:
    """The ideal of a row of results, which `Metric.told` gave; rows of earlier runs have none."""
    told = row.get("ideal", "low" if row.get("greater_is_better") is False else "high")
    return {"high": math.inf, "low": -math.inf}[told] if isinstance(told, str) else float(told)
