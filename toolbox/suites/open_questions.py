"""Open questions: no answer is the right one, so a judge model grades and compares them (`evaluate --judge URL`)."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "judge_score": Metric(N_("the judge's mark, of 1 to 10"), math.inf),
    "judge_wins": Metric(N_("answers that the judge prefers"), math.inf),
}
ANSWERED = {"answer", "answers", "answerkey", "choices", "options", "target", "label", "best answer", "mc1_targets"}


class OpenQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A row: a question, and no answers."""

    question: str
    system: str = ""


def read(path: Path) -> list[OpenQuestion]:
    return rows.read(path, OpenQuestion)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return isinstance(first.get("question"), str) and not ANSWERED & {column.lower() for column in first}


KIND = Kind(
    name="open_questions",
    title=N_("Open questions"),
    shows=N_(
        "What a judge model thinks of the answers, wins counted only where it says so in both orders; it likes length, "
        "and its own kind."
    ),
    paper="Zheng et al.: Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv:2306.05685",
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
)
