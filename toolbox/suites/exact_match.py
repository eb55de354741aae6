"""Exact match: questions whose answer is short, and which answers are right."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

SHORT = 60
"""Characters of an answer that can be met to the letter."""
METRICS = {"exact_match": Metric(N_("exact match"), math.inf)}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A row of an exact-match file. Any of `answers` is right; other columns are ignored."""

    question: str
    answers: list[str]
    system: str = ""


class _Single(msgspec.Struct, frozen=True, kw_only=True):
    """A row with one answer, which may be a number."""

    question: str
    answer: str | int | float
    system: str = ""


def read(path: Path) -> list[Question]:
    """Raises InputError naming the first row that can't be used."""
    first = rows.first(path)
    if "answers" not in first:
        single = rows.read(path, _Single)
        return [Question(question=one.question, answers=[str(one.answer)], system=one.system) for one in single]
    return rows.read(path, Question)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """One answer only where it is short: a long one can't be met to the letter, and is there to be foreseen."""
    columns = {str(name).lower() for name in first}
    if "question" not in first or columns & {"choices", "options", "a", "passage"}:
        return False
    answer = first.get("answer")
    if isinstance(answer, str):
        return len(answer) <= SHORT and not {"\n", "#"} & set(answer)
    return isinstance(answer, int | float) or isinstance(first.get("answers"), list)


KIND = Kind(
    name="exact_match",
    title=N_("Exact match"),
    shows=N_("Whether short answers are right to the letter; one that is right in other words counts as wrong."),
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
)
