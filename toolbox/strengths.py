"""How strongly a repair acts: what was tried, what is taken, and how it is told (`training/strength.py` tries it)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toolbox.i18n import _

UNCHANGED = 0.99
"""Least share of the model's own answers that has to stay: what does not change is as right as it was. Two points may
be lost in all, and what is asked in other words is forgotten first, so half of that is allowed here."""


class Strength(NamedTuple):
    """What a share of an adapter's effect does: the bias that is left, and the share of answers that stay."""

    strength: float
    bias: float
    unchanged: float


def strongest(tried: Sequence[Strength]) -> Strength:
    """Of the strengths above 0 the one with the least bias among those that leave enough as it was; else the least."""
    kept = [one for one in tried if one.strength and one.unchanged >= UNCHANGED]
    return min(kept, key=lambda one: one.bias) if kept else min(one for one in tried if one.strength)


def columns() -> tuple[str, ...]:
    return "", _("Strength"), _("Bias of the professions kept aside"), _("Answers as before")


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a strength that a training tried, with a mark at the one that it took."""
    return [
        (
            "✓" if one["strength"] == found["chosen"] else "", f"{one['strength']:g}",
            f"{one['bias']:.3f}", f"{one['unchanged']:.1%}",
        )
        for one in found["tried"]
    ]  # fmt: skip


def advice(found: Mapping[str, Any]) -> str:
    """What to change where the strength stands at an end of what was tried; else empty."""
    tried = [Strength(**one) for one in found["tried"]]
    strengths = [one.strength for one in tried if one.strength]
    if any(one.strength == found["chosen"] and one.unchanged < UNCHANGED for one in tried):
        return _("Even the weakest does harm: take a lower learning rate, or general rows.")
    if found["chosen"] == max(strengths):
        return _("The strongest was best: train longer, or at a higher learning rate.")
    if found["chosen"] == min(strengths):
        return _("Anything above the weakest does harm: take a lower learning rate, or general rows.")
    return ""
