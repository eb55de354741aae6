"""GSM8K: grade-school problems whose answer is a number."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import numbers, rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "exact_match_strict": Metric(N_("right number, stated as the answer"), math.inf),
    "exact_match_flexible": Metric(N_("right number"), math.inf),
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A row: `answer` is a solution that ends with `#### NUMBER`, or the number alone."""

    question: str
    answer: str

    @property
    def number(self) -> Fraction | None:
        return numbers.final(self.answer)


def read(path: Path) -> list[Problem]:
    problems = rows.read(path, Problem)
    for place, problem in enumerate(problems, 1):
        if problem.number is None:
            raise rows.unusable(path, place, _("its answer holds no number"), Problem)
    return problems


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return isinstance(first.get("question"), str) and "\n#### " in f"\n{first.get('answer')}"


KIND = Kind(
    name="gsm8k",
    title=N_("GSM8K: arithmetic in words"),
    shows=N_(
        "Whether the final number is right; not whether the way to it is, and problems this old are in training data."
    ),
    paper="Cobbe et al.: Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
)
