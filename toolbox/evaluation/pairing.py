"""Figures of two evaluations of the same items, paired as base and tuned are (`runs compare`).

An evaluation keeps what each figure rests on, unit by unit. This compares them in a process of its own, since `runs`
knows no statistics: `python -m toolbox.evaluation.pairing` reads one JSON list of `Asked` from standard input, and
answers with one on the last line of standard output.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from toolbox import files
from toolbox.comparison import Asked
from toolbox.evaluation.statistics import Difference, Measured, Resampled, Share, holm

OURS = "toolbox.evaluation."


def units(metrics: Mapping[str, Measured]) -> dict[str, Any]:
    """What each figure rests on, as JSON holds it; of one whose statistic has no name, as a plugin's, nothing."""
    found: dict[str, Any] = {}
    for name, measured in metrics.items():
        if isinstance(measured, Share):
            found[name] = {"right": [int(right) for right in measured.right]}
        elif isinstance(measured, Resampled) and (statistic := _name(measured.statistic)):
            found[name] = {"units": measured.units.tolist(), "statistic": statistic, "bounds": measured.bounds}
    return found


def _name(statistic: Callable[..., Any]) -> str:
    """Where to find it again; empty of what was made in passing."""
    name = f"{statistic.__module__}:{statistic.__qualname__}"
    return name if name.startswith(OURS) and "<" not in name else ""


def differences(asked: Sequence[Asked]) -> list[dict[str, Any] | None]:
    """Second minus first of each, with a paired interval and p, adjusted for all that are asked; None where it can't
    be told."""
    found = [_difference(one) for one in asked]
    adjusted = iter(holm([one.p for one in found if one]))
    return [{**msgspec.structs.asdict(one), "p_holm": next(adjusted)} if one else None for one in found]


def _difference(asked: Asked) -> Difference | None:
    before, after = (_kept(file, asked.model, asked.metric) for file in (asked.before, asked.after))
    if type(before) is not type(after) or before is None or after is None or _size(before) != _size(after):
        return None
    found: Difference = after.difference(before)
    return found


def _kept(file: str, model: str, metric: str) -> Any:
    kept = _units_in(file).get(model, {}).get(metric)
    if kept is None:
        return None
    if "right" in kept:
        return Share([bool(right) for right in kept["right"]])
    module, _colon, name = str(kept["statistic"]).partition(":")
    if not module.startswith(OURS) or not (statistic := getattr(importlib.import_module(module), name, None)):
        return None
    bounds = tuple(kept["bounds"]) if kept["bounds"] else None
    return Resampled(np.array(kept["units"], dtype=float), statistic, bounds)


@cache
def _units_in(file: str) -> dict[str, Any]:
    return (files.read_json(Path(file)) or {}).get("units", {})


def _size(kept: Share | Resampled) -> tuple[int, ...]:
    return (len(kept.right),) if isinstance(kept, Share) else kept.units.shape


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Asked])
    print(msgspec.json.encode(differences(asked)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
