"""How sure a figure is: 95 % intervals of what was measured, and of the difference between two models (`evaluate`).

They cover which items were asked, not what another training with another seed would have given.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

Z95 = 1.959964
RESAMPLES, CHUNKS = 2000, 20
SEED = 42
ROUNDING = 1e-9
"""Differences that are this near are the same: sums depend on their order."""


class Estimate(msgspec.Struct, frozen=True):
    """A value with its 95 % interval; `n` counts the units it rests on."""

    value: float
    low: float
    high: float
    n: int


class Difference(Estimate, frozen=True):
    """Tuned minus base on the same items, with its 95 % interval."""

    p: float
    """How often a difference at least this large comes about where the models are alike (a paired test)."""


class Measured(Protocol):
    """What a suite found on its items; `difference` is against the same items measured on another model."""

    def estimate(self) -> Estimate: ...

    def difference(self, before: Any) -> Difference:
        """This value minus the other, item by item paired."""


class Share(msgspec.Struct, frozen=True):
    """The share of items that came out right."""

    right: list[bool]

    def estimate(self) -> Estimate:
        return wilson(sum(self.right), len(self.right))

    def difference(self, before: "Share") -> Difference:
        """Agresti and Min's interval: half an item is added to each cell, so that "no change" is never certain.

        A. Agresti, Y. Min: Simple improved confidence intervals for comparing matched proportions,
        Statistics in Medicine 24 (2005). The test is McNemar's, exact.
        """
        pairs = list(zip(before.right, self.right, strict=True))
        better = sum(not was and is_ for was, is_ in pairs)
        worse = sum(was and not is_ for was, is_ in pairs)
        gained, lost, n = better + 0.5, worse + 0.5, len(pairs) + 2
        centre = (gained - lost) / n
        reach = Z95 * math.sqrt((gained + lost) - (gained - lost) ** 2 / n) / n
        value = (gained - lost) / len(pairs)
        low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
        return Difference(value, low, high, len(pairs), mcnemar(better, worse))


class Resampled(msgspec.Struct, frozen=True):
    """A statistic of units [n, …] whose interval comes from drawing units anew (percentile bootstrap; Efron 1979).

    `statistic` takes units with axes before these and returns what these axes were. Where all units are alike every
    draw is, too, which says nothing of how sure the value is: a mean of units that has `bounds` gets `unvaried`'s
    interval then.
    """

    units: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float] | None = None
    """What each unit's part in a mean lies between; None where that is not known, or the statistic is no mean."""

    def estimate(self) -> Estimate:
        draws = [self.statistic(self.units[drawn]) for drawn in _draws(len(self.units))]
        return _interval(float(self.statistic(self.units)), draws, len(self.units), self.bounds)

    def difference(self, before: "Resampled") -> Difference:
        """The same units are drawn for both models: what makes an item hard for both cancels out.

        The test exchanges the two models' values of each unit by chance (the paired permutation test; Fisher 1935).
        """
        draws = [
            self.statistic(self.units[drawn]) - before.statistic(before.units[drawn])
            for drawn in _draws(len(self.units))
        ]
        value = float(self.statistic(self.units) - before.statistic(before.units))
        reach = self.bounds[1] - self.bounds[0] if self.bounds else 0.0
        shown = _interval(value, draws, len(self.units), (-reach, reach) if self.bounds else None)
        return Difference(shown.value, shown.low, shown.high, shown.n, self._exchanged(before, value))

    def _exchanged(self, before: "Resampled", value: float) -> float:
        """p of the permutation test; the difference that was found counts as one of the permutations."""
        after, other, generator = self.units, before.units, np.random.default_rng(SEED)
        whole = (1,) * (after.ndim - 1)  # a unit's values are exchanged together
        extreme = 1
        for _chunk in range(CHUNKS):
            swapped = generator.random((RESAMPLES // CHUNKS, len(after), *whole)) < 0.5
            one, two = np.where(swapped, other, after), np.where(swapped, after, other)
            found = np.abs(self.statistic(one) - before.statistic(two))
            extreme += int((~(found < abs(value) - ROUNDING)).sum())
        return min(1.0, extreme / (RESAMPLES + 1))


def wilson(right: int, n: int) -> Estimate:
    """Wilson's score interval of a proportion (Wilson 1927): inside [0, 1], and never empty."""
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)), n)


def unvaried(value: float, n: int, bounds: tuple[float, float]) -> Estimate:
    """The interval of a mean of which all n units are `value`, and any lies within `bounds`.

    Of units that differ, none was seen: Wilson's bound says how large their share may be all the same, z² / (n + z²),
    about the "rule of three" (J. A. Hanley, A. Lippman-Hand: If nothing goes wrong, is everything all right?, JAMA 249
    (1983)). On either side all of them are taken to lie at the bound; of units that are 0 or 1 this is `wilson`.
    """
    others = wilson(0, n).high
    return Estimate(value, value - others * (value - bounds[0]), value + others * (bounds[1] - value), n)


def mcnemar(better: int, worse: int) -> float:
    """p of the exact test of paired shares: of all items that changed, each was as likely to gain as to lose.

    Q. McNemar: Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947).
    """
    changed = better + worse
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changed)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p for a table of so many tests, in the order given: S. Holm: A simple sequentially rejective multiple test
    procedure, Scandinavian Journal of Statistics 6 (1979)."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def _draws(n: int) -> Iterator[np.ndarray]:
    """Indices [RESAMPLES / CHUNKS, n], CHUNKS times; the same ones for every model."""
    generator = np.random.default_rng(SEED)
    for _chunk in range(CHUNKS):
        yield generator.integers(0, n, (RESAMPLES // CHUNKS, n))


def _interval(value: float, draws: list[np.ndarray], n: int, bounds: tuple[float, float] | None) -> Estimate:
    drawn = np.concatenate(draws)
    if bounds and np.nanmax(drawn) - np.nanmin(drawn) < ROUNDING:
        return unvaried(value, n, bounds)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)
