"""What differs between runs: in what was planned, in what came of it, in what was measured (`runs compare`)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from toolbox import chains
from toolbox.facts import Facts
from toolbox.report.figures import CAME
from toolbox.runs import Run

UNSAID = (
    "entry", "why", "estimate", "output", "adapter", "tensorboard", "model.path", "model.network", "base.path",
    "base.network", "device.index", "device.processes", "device.memory_free_bytes", "device.memory_total_bytes",
)  # fmt: skip
"""Of a plan: what follows from the rest, where things lie, and how much was free just then."""
UNSAID_OF_DATA = ("path", "more", "notes", "faults", "longest_chars", "columns")
CAME_TOO = ("steps",)


class Line(msgspec.Struct, frozen=True):
    """A key of a plan or a result, with each run's value; None where a run has none."""

    key: str
    values: list[Any]


class Measured(msgspec.Struct, frozen=True):
    """A metric of a suite on one model, base or tuned: each run's row of results, None where a run has none."""

    suite: str
    metric: str
    model: str
    rows: list[dict[str, Any] | None]

    @property
    def any_row(self) -> dict[str, Any]:
        return next(row for row in self.rows if row)


class Group(msgspec.Struct, frozen=True):
    """Runs of one verb: only their plans can be told apart key by key."""

    verb: str
    runs: list[Facts]
    planned: list[Line]
    came: list[Line]
    measured: list[Measured]


def compare(runs: Sequence[Run]) -> list[Group]:
    """The runs, by verb in the order they are named, and what differs within each verb."""
    by_verb: dict[str, list[Facts]] = {}
    for run in runs:
        facts = Facts.of(run)
        by_verb.setdefault(facts.verb, []).append(facts)
    return [
        Group(verb, own, differing([facts.plan for facts in own]), _came(own), _measured(own))
        for verb, own in by_verb.items()
    ]


def differing(plans: Sequence[dict[str, Any]]) -> list[Line]:
    """The keys, dotted where they are nested, whose values are not the same in all plans, in the plans' order."""
    flat = [dict(_flat(plan)) for plan in plans]
    lines = [Line(key, [one.get(key) for one in flat]) for key in dict.fromkeys(key for one in flat for key in one)]
    return [line for line in lines if any(value != line.values[0] for value in line.values)]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping; lists of mappings are numbered from 1."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            yield from _flat(item, f"{key}.{number}")
    elif not _unsaid(key):
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _unsaid(key: str) -> bool:
    of_data = "datasets." in key and any(part in UNSAID_OF_DATA for part in key.split("."))
    return of_data or any(key == name or key.startswith(name + ".") for name in UNSAID)


def _came(runs: Sequence[Facts]) -> list[Line]:
    """The figures of the results that any run has, numbers only; equal ones too, since that is an outcome."""
    lines = [Line(key, [_number(facts.result.get(key)) for facts in runs]) for key in (*CAME_TOO, *CAME)]
    return [line for line in lines if any(value is not None for value in line.values)]


def _number(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and math.isfinite(value) else None


def _measured(runs: Sequence[Facts]) -> list[Measured]:
    """What evaluations found: a run's own results, or those of the newest evaluations that were made from it."""
    found = [_results(facts) for facts in runs]
    keys = dict.fromkeys(key for one in found for key in one)
    return [Measured(*key, [one.get(key) for one in found]) for key in keys]


def _results(facts: Facts) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows by (suite, metric, model), without differences; of what a run made, only its tuned model is its own."""
    own = facts.verb == "evaluate"
    sources = [facts.result] if own else [run.result() for run in chains.later(facts.run)]
    rows = [row for result in sources for row in result.get("results") or [] if isinstance(row, dict)]
    models = ("base", "tuned") if own else ("tuned",)
    return {
        (str(row.get("suite")), str(row.get("metric")), str(row.get("model"))): row
        for row in rows
        if row.get("model") in models and all(_number(row.get(name)) is not None for name in ("value", "low", "high"))
    }


def difference(row: Measured) -> dict[str, Any] | None:
    """The second run's value less the first's, as a row of results; None where there are not both.

    Its interval is that of independent samples, sqrt(a² + b²) of the half-widths. On the same items, where a paired
    test would find more, it says "chance" too often rather than too seldom.
    """
    before, after = row.rows
    if not before or not after:
        return None
    value = after["value"] - before["value"]
    reach = math.hypot((before["high"] - before["low"]) / 2, (after["high"] - after["low"]) / 2)
    return {**after, "model": "difference", "value": value, "low": value - reach, "high": value + reach}
