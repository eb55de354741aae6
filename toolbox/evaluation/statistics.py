"""How sure a figure is: 95 % intervals of what was measured, and of the difference between two models (`evaluate`).

They cover which items were asked, not what another training with another seed would have given.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
import numpy as np

Z95 = 1.959964
RESAMPLES, CHUNKS = 2000, 20
SEED = 42


class Estimate(msgspec.Struct, frozen=True):
    """A value with its 95 % interval; `n` counts the units it rests on."""

    value: float
    low: float
    high: float
    n: int


class Measured(Protocol):
    """What a suite found on its items; `difference` is against the same items measured on another model."""

    def estimate(self) -> Estimate: ...

    def difference(self, before: Any) -> Estimate:
        """This value minus the other, item by item paired."""


class Share(msgspec.Struct, frozen=True):
    """The share of items that came out right."""

    right: list[bool]

    def estimate(self) -> Estimate:
        return wilson(sum(self.right), len(self.right))

    def difference(self, before: "Share") -> Estimate:
        """Agresti and Min's interval: half an item is added to each cell, so that "no change" is never certain.

        A. Agresti, Y. Min: Simple improved confidence intervals for comparing matched proportions,
        Statistics in Medicine 24 (2005).
        """
        pairs = list(zip(before.right, self.right, strict=True))
        gained = sum(not was and is_ for was, is_ in pairs) + 0.5
        lost = sum(was and not is_ for was, is_ in pairs) + 0.5
        n = len(pairs) + 2
        centre = (gained - lost) / n
        reach = Z95 * math.sqrt((gained + lost) - (gained - lost) ** 2 / n) / n
        value = (gained - lost) / len(pairs)
        return Estimate(value, max(-1.0, centre - reach), min(1.0, centre + reach), len(pairs))


class Resampled(msgspec.Struct, frozen=True):
    """A statistic of units [n, k] whose interval comes from drawing units anew (the percentile bootstrap; Efron 1979).

    `statistic` takes units [..., n, k] and returns [...].
    """

    units: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]

    def estimate(self) -> Estimate:
        draws = [self.statistic(self.units[drawn]) for drawn in _draws(len(self.units))]
        return _interval(float(self.statistic(self.units)), draws, len(self.units))

    def difference(self, before: "Resampled") -> Estimate:
        """The same units are drawn for both models: what makes an item hard for both cancels out."""
        draws = [
            self.statistic(self.units[drawn]) - before.statistic(before.units[drawn])
            for drawn in _draws(len(self.units))
        ]
        value = float(self.statistic(self.units) - before.statistic(before.units))
        return _interval(value, draws, len(self.units))


def wilson(right: int, n: int) -> Estimate:
    """Wilson's score interval of a proportion (Wilson 1927): inside [0, 1], and never empty."""
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)), n)


def _draws(n: int) -> Iterator[np.ndarray]:
    """Indices [RESAMPLES / CHUNKS, n], CHUNKS times; the same ones for every model."""
    generator = np.random.default_rng(SEED)
    for _chunk in range(CHUNKS):
        yield generator.integers(0, n, (RESAMPLES // CHUNKS, n))


def _interval(value: float, draws: list[np.ndarray], n: int) -> Estimate:
    low, high = np.nanpercentile(np.concatenate(draws), [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)
