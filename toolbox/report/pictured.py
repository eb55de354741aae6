"""The charts of an evaluation, drawn from what it saved of each suite (`evaluate`, `runs report`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox.report.categories import categories_chart
from toolbox.report.leaning import leaning_chart
from toolbox.suites.kinds import KINDS

REPAIR = "repair"
"""Held-out and repaired professions in one picture."""

Tables = list[list[dict[str, Any]]]
"""Rows of one model, or of two: base, tuned."""


class Saved(msgspec.Struct, frozen=True):
    """What is drawn of a file in a run's evaluation/; answers of suites without a picture are not even decoded."""

    kind: str
    categories: dict[str, list[dict[str, Any]]] = {}
    rows: dict[str, msgspec.Raw] = {}


def charts(folder: Path, repaired: bool) -> dict[str, str]:
    """SVGs by name, in the language of the day; `repaired`: one of all gender probes together, too.

    A file that is torn, or of a version that saved something else, has no chart.
    """
    drawn, probes = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=Saved)
            if saved.kind == "gender" and saved.rows:
                tables = [msgspec.json.decode(rows, type=list[dict[str, Any]]) for rows in saved.rows.values()]
                drawn[path.stem] = _leaning([tables])
                probes.append(tables)
            kind, tables = KINDS.get(saved.kind), list(saved.categories.values())
            if kind and kind.picture and tables and all(tables):
                drawn[path.stem] = categories_chart(kind.picture, tables)
        except (OSError, msgspec.DecodeError, LookupError, TypeError):
            continue
    return drawn | ({REPAIR: _leaning(probes)} if repaired and probes else {})


def _leaning(probes: Sequence[Tables]) -> str:
    """Before and after by profession, of the gender probes in one or several suites."""
    tables = [[row for tables in probes for row in tables[place]] for place in range(min(map(len, probes)))]
    return leaning_chart(tables[0], tables[1] if len(tables) > 1 else None)
