"""Every number that a run's result states, by kind, under names that no machine or language changes (`record.py`)."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolbox.facts import Facts
from toolbox.report.tolerances import HIGH, LOW, Machine, Name, Value

Numbers = dict[Name, dict[str, Value]]

HASH = re.compile(r"[0-9a-f]{64}")
OF_THE_MACHINE = ("predicted", "measured", "factors", "energy")
"""Parts of a result that say how a machine did, not what was made."""
LEFT_OUT = ("ladder", "results", "bases", "eval", "eval_before")
"""What is said otherwise or nowhere: steps taken for want of memory; rows of an evaluation, by their names."""
ROUNDING = ("max_abs_diff", "tolerance", "adapter_effect")
POINTS = 20
"""Of a curve; of more points these many are stated, evenly, with the last."""
INTERVAL = {"low": LOW, "high": HIGH, "p": ", p", "p_holm": ", p (Holm)"}


def numbers(facts: Facts) -> Numbers:
    """The numbers of a run by kind; texts are left out, but for hashes of what was made."""
    found: Numbers = {}
    for kind, name, value in (*_of_result(facts), *_of_rows(facts.result.get("results")), *_of_curves(facts)):
        if not isinstance(value, float) or math.isfinite(value):
            found.setdefault(kind, {}).setdefault(name, value)
    return found


def machine(device: Any, env: dict[str, Any]) -> Machine:
    """What numbers were computed by, as a plan's device and a job's env.json say."""
    device = device if isinstance(device, dict) else {}
    packages = env.get("packages")
    named = {name: env.get(name) for name in ("toolbox", "revision", "python")}
    versions = {**named, **(packages if isinstance(packages, dict) else {})}
    return Machine(
        kind=str(device.get("kind", "")),
        name=str(device.get("name", "")),
        threads=int(env.get("threads") or 0),
        simd=str(env.get("simd", "")),
        versions={name: str(version) for name, version in versions.items() if version},
    )


def _of_result(facts: Facts) -> Iterator[tuple[Name, str, Value]]:
    usual: Name = "loss" if facts.verb == "finetune" else "metric"
    for name, value in _leaves({key: part for key, part in facts.result.items() if key not in LEFT_OUT}):
        if kind := _kind(name, value, usual):
            within, _dot, leaf = name.rpartition(".")
            yield kind, f"{within}.value{INTERVAL[leaf]}" if leaf in INTERVAL else name, value


def _kind(name: str, value: Any, usual: Name) -> Name | None:
    """The kind of a leaf; None for texts that are no hash."""
    first, leaf = name.split(".")[0], name.rpartition(".")[2]
    if isinstance(value, str):
        if first == "hashes" and HASH.fullmatch(value):
            return "exact" if name.startswith("hashes.base") else "hash"
        return None
    if not isinstance(value, bool | int | float):
        return None
    if leaf == "bytes" or leaf.endswith("_bytes"):
        return "bytes"
    if first in OF_THE_MACHINE or leaf.endswith(("_s", "_ms", "_wh")):
        return "time"
    if leaf in INTERVAL:
        return "bound"
    if leaf in ROUNDING:
        return "rounding"
    return usual if isinstance(value, float) else "exact"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, leaf) of nested objects; elements of lists go by their places, since their texts are translated."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value, 1):
            yield from _leaves(inner, f"{name}.{place}")
    else:
        yield name, value


def _of_rows(rows: Any) -> Iterator[tuple[Name, str, Value]]:
    """Rows of an evaluation, as "demo-qa exact_match tuned", its interval, and its count."""
    seen: dict[str, str] = {}
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not isinstance(row.get("value"), int | float):
            continue
        suite = str(row.get("suite", ""))
        short = Path(suite).stem if "/" in suite else suite
        while seen.setdefault(short, suite) != suite:
            short += "'"
        name = f"{short} {row.get('metric', '')} {row.get('model', '')}".strip()
        yield "metric", name, float(row["value"])
        for key, ending in INTERVAL.items():
            if isinstance(row.get(key), int | float):
                yield "bound", name + ending, float(row[key])
        if isinstance(row.get("n"), int):
            yield "exact", f"{name}, n", row["n"]


def _of_curves(facts: Facts) -> Iterator[tuple[Name, str, Value]]:
    """The points of the loss's charts: of training, and of held-out rows."""
    for metric in ("loss", "eval_loss"):
        points = facts.curve(metric)
        every = max(1, math.ceil(len(points) / POINTS))
        for step, value in points[::-1][::every][::-1]:
            yield "loss", f"{metric} at step {step:g}", float(value)
