"""Exact match: questions whose answer is short, and which answers are right."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {"exact_match": Metric(N_("exact match"), math.inf)}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A row of an exact-match file. Any of `answers` is right; other columns are ignored."""

    question: str
    answers: list[str]
    system: str = ""


def read(path: Path) -> list[Question]:
    return rows.read(path, Question)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return "question" in first and isinstance(first.get("answers"), list)


KIND = Kind(
    name="exact_match",
    title=N_("Exact match"),
    shows=N_("Whether short answers are right to the letter; one that is right in other words counts as wrong."),
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
)
