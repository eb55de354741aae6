"""What a backend said, as figures that can be compared (`evaluate --backend`)."""

import math
from typing import Any

import msgspec

from toolbox.evaluation.measures import mean
from toolbox.evaluation.statistics import Z95, Difference, Estimate, Measured, Share


class Stated(msgspec.Struct, frozen=True):
    """A figure of which only the standard error is known: its interval is that of a normal distribution."""

    value: float
    stderr: float
    n: int

    def estimate(self) -> Estimate:
        return Estimate(self.value, self.value - Z95 * self.stderr, self.value + Z95 * self.stderr, self.n)

    def difference(self, before: "Stated") -> Difference:
        """As of two samples that have nothing to do with each other, which makes the interval wider than it need be."""
        value, stderr = self.value - before.value, math.hypot(self.stderr, before.stderr)
        p = math.erfc(abs(value) / (stderr * math.sqrt(2))) if stderr else float(value == 0)
        return Difference(value, value - Z95 * stderr, value + Z95 * stderr, self.n, p)


class Figure(msgspec.Struct, frozen=True):
    """One metric of a task."""

    value: float
    stderr: float | None
    values: list[float] | None
    """Of each row, in the rows' order, where the value is their mean."""
    more_is_better: bool | None = None

    def measured(self, n: int) -> Measured | None:
        """By its rows where it has any, else by its error; None where nothing is known but the value."""
        if self.values and {round(value, 6) for value in self.values} <= {0.0, 1.0}:  # Rouge's F says 0.999999995
            return Share([value > 0.5 for value in self.values])
        if self.values:
            return mean(self.values)
        return None if self.stderr is None else Stated(self.value, self.stderr, n)


class Told(msgspec.Struct, frozen=True):
    """What a task came to on one model."""

    name: str
    metrics: dict[str, Figure]
    n: int
    rows: list[dict[str, Any]]


class Said(msgspec.Struct, frozen=True):
    """What a script leaves: the backend's version, and what came of each task; of a tag's, several."""

    version: str
    tasks: dict[str, list[Told]]
