"""What differs between runs: in what was planned, in what came of it, in what was measured (`runs compare`)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from toolbox import chains, files
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


class Asked(msgspec.Struct, frozen=True):
    """Which figure of two evaluations is to be paired; both files are of evaluation/ and have the same items."""

    before: str
    after: str
    model: str
    metric: str


Pair = Callable[[Sequence[Asked]], Sequence[dict[str, Any] | None]]
"""The paired difference of each, as a row of results states one; None where it can't be told."""


class Measured(msgspec.Struct, frozen=True):
    """A metric of a suite on one model, base or tuned: each run's row of results, None where a run has none."""

    suite: str
    metric: str
    model: str
    rows: list[dict[str, Any] | None]
    paired: dict[str, Any] | None = None
    """Of two runs that answered the same items: the second's value less the first's, with its own interval and p."""

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


def compare(runs: Sequence[Run], pair: Pair) -> list[Group]:
    """The runs, by verb in the order they are named, and what differs within each verb; `pair` does the statistics."""
    by_verb: dict[str, list[Facts]] = {}
    for run in runs:
        facts = Facts.of(run)
        by_verb.setdefault(facts.verb, []).append(facts)
    return [
        Group(verb, own, differing([facts.plan for facts in own]), _came(own), _measured(own, pair))
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


class _Found(NamedTuple):
    """A row of results, the file of evaluation/ that it is from, and what its items were: a hash, and how many."""

    row: dict[str, Any]
    file: str
    items: tuple[Any, ...]


_Key = tuple[str, str, str]


def _measured(runs: Sequence[Facts], pair: Pair) -> list[Measured]:
    """What evaluations found: a run's own results, or those of the newest evaluations that were made from it."""
    names: dict[str, str] = {}
    found = [_results(facts, names) for facts in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    paired = _paired(keys, found, pair) if len(found) == 2 else {}
    rows = {key: [one[key].row if key in one else None for one in found] for key in keys}
    return [Measured(*key, rows[key], paired.get(key)) for key in keys]


def _paired(keys: Sequence[_Key], found: Sequence[dict[_Key, _Found]], pair: Pair) -> dict[_Key, dict[str, Any] | None]:
    """The paired differences of the figures that both runs have of the same items."""
    before, after = found
    same = [
        key
        for key in keys
        if key in before and key in after and before[key].file and before[key].items == after[key].items
    ]
    asked = [Asked(before[key].file, after[key].file, key[2], key[1]) for key in same]
    return dict(zip(same, pair(asked), strict=True)) if asked else {}


def _results(facts: Facts, names: dict[str, str]) -> dict[_Key, _Found]:
    """By (suite, metric, model), without differences; of what a run made, only its tuned model is its own.

    `names`: what a file of these items was called first, by its hash; so it goes by there too, wherever it lies here.
    """
    own = facts.verb == "evaluate"
    models = ("base", "tuned") if own else ("tuned",)
    found: dict[_Key, _Found] = {}
    for source in [facts] if own else [Facts.of(run) for run in chains.later(facts.run)]:
        saved, limit = _saved(source.run), source.plan.get("limit")
        for row in _whole_rows(source.result):
            suite, metric, model = (str(row.get(name)) for name in ("suite", "metric", "model"))
            file, sha256 = saved.get(suite, ("", ""))
            if model in models:
                name = names.setdefault(sha256, suite) if sha256 else suite
                found[name, metric, model] = _Found(row, file, (sha256, limit, row.get("n")))
    return found


def _whole_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have a value and an interval."""
    rows = (row for row in result.get("results") or [] if isinstance(row, dict))
    return [row for row in rows if all(_number(row.get(name)) is not None for name in ("value", "low", "high"))]


def _saved(run: Run) -> dict[str, tuple[str, str]]:
    """(file, hash of the items) by suite, of what an evaluation kept."""
    found = {str(path): files.read_json(path) or {} for path in sorted((run.path / "evaluation").glob("*.json"))}
    return {
        str(content["suite"]): (path, str(content["sha256"]))
        for path, content in found.items()
        if {"suite", "sha256", "units"} <= content.keys()
    }


def difference(row: Measured) -> dict[str, Any] | None:
    """The second run's value less the first's, as a row of results; None where there are not both.

    On the same items it is paired. Else its interval is that of independent samples, sqrt(a² + b²) of the half-widths,
    and there is no p.
    """
    before, after = row.rows
    if not before or not after:
        return None
    if row.paired:
        return {**after, **row.paired, "model": "difference"}
    value = after["value"] - before["value"]
    reach = math.hypot((before["high"] - before["low"]) / 2, (after["high"] - after["low"]) / 2)
    return {**after, "model": "difference", "value": value, "low": value - reach, "high": value + reach}
