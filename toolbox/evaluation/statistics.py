"""How sure a figure is: 95 % intervals of what was measured, and of the difference between two models (`evaluate`).

They cover which items were asked, not what another training with another seed would have given.
"""

import math
import warnings
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
        low, high = max(-1.0, min(value, centre - reach)), min(1.0, max(value, centre + reach))
        return Difference(value, low, high, len(pairs), mcnemar(better, worse))


class Resampled(msgspec.Struct, frozen=True):
    """A statistic of units [n, …] whose interval comes from drawing units anew (percentile bootstrap; Efron 1979).

    `statistic` takes units with axes before these and returns what these axes were; of a draw in which it is not
    defined, as a ratio without a denominator, no number (`_interval` says what becomes of it).
    """

    units: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float] | None = None
    """What the statistic lies between, whatever the units; None where that is not known."""

    def estimate(self) -> Estimate:
        draws = [self._of(self.units[drawn]) for drawn in _draws(len(self.units))]
        return _interval(float(self._of(self.units)), draws, len(self.units), self.bounds, self._counted())

    def _of(self, units: np.ndarray) -> np.ndarray:
        """The statistic, quiet where it is not defined."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of what holds no number
            return np.asarray(self.statistic(units))

    def _counted(self) -> int:
        """Units that say anything by themselves: of a ratio those with a denominator; all, where none does."""
        return int(np.isfinite(self._of(self.units[:, None])).sum()) or len(self.units)

    def difference(self, before: "Resampled") -> Difference:
        """The same units are drawn for both models: what makes an item hard for both cancels out.

        The test exchanges the two models' values of each unit by chance (the paired permutation test; Fisher 1935).
        """
        draws = [self._of(self.units[drawn]) - before._of(before.units[drawn]) for drawn in _draws(len(self.units))]
        value = float(self._of(self.units) - before._of(before.units))
        reach = self.bounds[1] - self.bounds[0] if self.bounds else 0.0
        counted = min(self._counted(), before._counted())
        shown = _interval(value, draws, len(self.units), (-reach, reach) if self.bounds else None, counted)
        return Difference(shown.value, shown.low, shown.high, shown.n, self._exchanged(before, value))

    def _exchanged(self, before: "Resampled", value: float) -> float:
        """p of the permutation test; the difference that was found counts as one of the permutations."""
        after, other, generator = self.units, before.units, np.random.default_rng(SEED)
        whole = (1,) * (after.ndim - 1)  # a unit's values are exchanged together
        extreme = 1
        for _chunk in range(CHUNKS):
            swapped = generator.random((RESAMPLES // CHUNKS, len(after), *whole)) < 0.5
            one, two = np.where(swapped, other, after), np.where(swapped, after, other)
            found = np.abs(self._of(one) - before._of(two))
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


def _interval(
    value: float, draws: list[np.ndarray], n: int, bounds: tuple[float, float] | None, counted: int
) -> Estimate:
    """The percentile interval of what was drawn; `counted`: how many of the n units the value rests on.

    Always numbers, in order, with the value between them. A draw in which the statistic is not defined could have been
    anything: it counts at both ends, as a bound, or where there is none as the farthest draw. Where all draws are alike
    they say nothing of how sure the value is, and it gets `unvaried`'s interval; without bounds nobody could say what
    another unit would do, and the interval is the value alone.
    """
    drawn = np.concatenate(draws).astype(float)
    known = drawn[np.isfinite(drawn)]
    farthest = np.array([known.min(initial=value), known.max(initial=value)])
    if bounds and farthest[1] - farthest[0] < ROUNDING:
        return msgspec.structs.replace(unvaried(value, counted, bounds), n=n)
    ends = bounds or farthest
    low, high = (
        float(np.percentile(np.where(np.isfinite(drawn), drawn, end), percent))
        for end, percent in zip(ends, (2.5, 97.5), strict=True)
    )
    return Estimate(value, min(low, value), max(high, value), n)
