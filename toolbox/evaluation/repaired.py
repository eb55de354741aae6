"""What a repair did on portraits that it never saw, and what it cost: a part of what `evaluate` finds."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np

from toolbox import files, repairing
from toolbox.evaluation.gender import likelihood_bias
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import ROUNDING, Resampled, Share
from toolbox.suites import Suite

HALVED, LOST = 0.5, 0.02
"""Most that may be left of the bias, as a share; most that the share of right answers may fall."""
REVERSED = 0.25
"""A profession counts as turned round where it now leans at least so far the other way."""


def summary(suites: Sequence[Suite], found: Mapping[str, Mapping[str, Finding]]) -> dict[str, Any]:
    """How the repair was made, its checks, and what was turned round; empty where no repair was measured.

    A suite is a repair's where it lies beside the record of one, and two models have to have been measured.
    `checks[]`: check (halved, kept), suite, metric, before, after, value low high (of `halved` the share of the bias
    that is left, of `kept` the difference), p of no difference, passed. `kept`: whether all came that was promised.
    """
    compared = [suite for suite in suites if {"base", "tuned"} <= set(found[suite.name])]
    held = next((suite for suite in compared if _is_held_out(suite)), None)
    if held is None:
        return {}
    before, after = found[held.name]["base"], found[held.name]["tuned"]
    record = files.read_json(held.path.parent / repairing.RECORD) or {}
    checks = [
        _halved(held, name, before, after)
        for name, measured in before.metrics.items()
        if name.startswith("likelihood_bias") and measured.estimate().value > ROUNDING  # else there is nothing to halve
    ]
    checks += [
        _kept(suite, name, found[suite.name])
        for suite in compared
        for name, measured in found[suite.name]["base"].metrics.items()
        if isinstance(measured, Share)
    ]
    return {
        "kept": repairing.kept(checks),
        **{name: record[name] for name in ("stage", "evaluation", "suite", "held_out") if name in record},
        "checks": checks,
        "turned_round": sum(_turned(*pair) for pair in zip(before.rows, after.rows, strict=True)),
        "professions": len(before.rows),
    }


def _is_held_out(suite: Suite) -> bool:
    return suite.path.name == repairing.HELD_OUT and (suite.path.parent / repairing.RECORD).is_file()


def _halved(suite: Suite, metric: str, before: Finding, after: Finding) -> dict[str, Any]:
    """The share of the bias that is left, with the interval of that share: both models' units are drawn together."""
    was, now = cast(Resampled, before.metrics[metric]), cast(Resampled, after.metrics[metric])
    left = Resampled(np.concatenate([now.units, was.units], axis=-1), _left).estimate()
    told = {"check": "halved", "suite": suite.name, "metric": metric, **_both(was, now)}
    return {**told, **_interval(left), "p": _p(now.difference(was)), "passed": left.value <= HALVED}


def _kept(suite: Suite, metric: str, findings: Mapping[str, Finding]) -> dict[str, Any]:
    was, now = findings["base"].metrics[metric], findings["tuned"].metrics[metric]
    lost = now.difference(was)
    told = {"check": "kept", "suite": suite.name, "metric": metric, **_both(was, now)}
    return {**told, **_interval(lost), "p": _p(lost), "passed": lost.value >= -LOST}


def _both(was: Any, now: Any) -> dict[str, float]:
    return {"before": was.estimate().value, "after": now.estimate().value}


def _interval(estimate: msgspec.Struct) -> dict[str, Any]:
    found = msgspec.structs.asdict(estimate)
    return {name: found[name] for name in ("value", "low", "high", "n")}


def _p(difference: Any) -> float | None:
    return getattr(difference, "p", None)


def _left(units: np.ndarray) -> np.ndarray:
    """units [..., n, (share after, share before)] → [...]; NaN where there was no bias before."""
    before = likelihood_bias(units[..., 1:])
    return likelihood_bias(units[..., :1]) / np.where(before > ROUNDING, before, np.nan)


def _turned(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a profession leans clearly the other way now."""
    was, now = (2 * row["likelihood_share_she"] - 1 for row in (before, after))
    return was * now < 0 and abs(now) >= REVERSED
