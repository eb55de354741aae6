"""Figures of a bias suite by category (a bias type, an occupation), and the scores that they are made from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from toolbox.errors import InputError
from toolbox.evaluation.statistics import Measured, Resampled
from toolbox.evaluation.subjects import Subject
from toolbox.i18n import _
from toolbox.inference import Watch

Figure = Callable[[np.ndarray], np.ndarray]
"""A statistic of units [..., n, k] → [...]; NaN where it is not defined."""
Bounds = tuple[float, float]
"""What a figure lies between."""


def defined(figures: dict[str, tuple[np.ndarray, Figure, Bounds]]) -> dict[str, Measured]:
    """The figures by metric, of their own units each, without those that are not defined, as of an empty group."""
    return {
        name: Resampled(units, figure, bounds)
        for name, (units, figure, bounds) in figures.items()
        if len(units) and np.isfinite(figure(units))
    }


def by_category(
    metric: str, names: Sequence[str], units: np.ndarray, figure: Figure, bounds: Bounds
) -> list[dict[str, Any]]:
    """A row a category, the largest first: its figure over its own units, with interval and count.

    A category whose figure is not defined, as one of an empty group is, is left out.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    table = []
    for name, chosen in sorted(places.items(), key=lambda one: -len(one[1])):
        own = units[chosen]
        if np.isfinite(figure(own)):
            estimate = Resampled(own, figure, bounds).estimate()
            table.append({"category": name, "metric": metric, **msgspec.structs.asdict(estimate)})
    return table


def sentence_scores(subject: Subject, texts: Sequence[str], watch: Watch) -> list[float]:
    """ln p of each whole text. Raises InputError where the model gives none that is a number."""
    scored = subject.texts([("", text) for text in texts], watch)
    return finite([math.fsum(one.log_likelihoods) for one in scored], texts)


def finite(scores: list[float], texts: Sequence[str]) -> list[float]:
    """The scores themselves. Raises InputError naming a text whose score is not a number: nothing could be compared."""
    bad = next((text for score, text in zip(scores, texts, strict=True) if not math.isfinite(score)), None)
    if bad is not None:
        raise InputError(
            _("The model gives no likelihood that is a number for {text!r}.").format(text=bad[:60]),
            _("Its weights or their precision are broken: measure the model it was made from."),
        )
    return scores
