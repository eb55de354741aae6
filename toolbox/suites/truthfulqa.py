"""TruthfulQA: questions that many people answer wrongly, as multiple choice."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "mc0": Metric(N_("best answer above the best false one"), math.inf),
    "mc1": Metric(N_("best answer above every false one (MC1)"), math.inf),
    "mc2": Metric(N_("share of probability on true answers (MC2)"), math.inf),
    "mc3": Metric(N_("true answers above every false one (MC3)"), math.inf),
    "binary": Metric(N_("chooses the true one of two shown"), math.inf),
}


_COLUMNS = {
    name.replace("_", " ").title(): name
    for name in (
        "question", "category", "best_answer", "best_incorrect_answer", "correct_answers", "incorrect_answers"
    )
}  # fmt: skip
"""What the authors' table calls what Hugging Face's rows do."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question with the answers of each setting; True marks a true one, and the first of mc0 and mc1 is it."""

    question: str
    category: str = ""
    mc0: dict[str, bool]
    mc1: dict[str, bool]
    mc2: dict[str, bool]

    @property
    def pair(self) -> tuple[str, str]:
        """The best answer and the best false one."""
        true = next(answer for answer, is_true in self.mc0.items() if is_true)
        return true, next(answer for answer, is_true in self.mc0.items() if not is_true)


def read(path: Path) -> list[Question]:
    """From the authors' mc_task.json or TruthfulQA.csv, or Hugging Face's rows: those of `choices` and `labels`, and
    those with the lists `correct_answers` and `incorrect_answers`."""
    found = []
    for number, row in rows.records(path):
        row = {_COLUMNS.get(name, name): value for name, value in row.items()} if isinstance(row, dict) else {}
        question = _of_table(row) if "best_answer" in row else _of_json(row)
        if question is None:
            raise rows.unusable(path, number, _("a setting lacks a true or a false answer"))
        found.append(question)
    return found


def _of_table(row: dict[str, Any]) -> Question | None:
    """As the authors' code makes the settings of their table. Tables from before 2025 name no best false answer; the
    first one stands for it."""
    true, false = (_parted(row.get(name)) for name in ("correct_answers", "incorrect_answers"))
    best, worst = (str(row.get(name) or "").strip() for name in ("best_answer", "best_incorrect_answer"))
    if not best or not false:
        return None
    return _question(
        row.get("question"), str(row.get("category") or ""), {best: True, worst or false[0]: False},
        {best: True} | dict.fromkeys(false, False), dict.fromkeys(true, True) | dict.fromkeys(false, False),
    )  # fmt: skip


def _of_json(row: dict[str, Any]) -> Question | None:
    mc0, mc1, mc2 = (_targets(row.get(f"mc{number}_targets")) for number in range(3))
    return _question(row.get("question"), str(row.get("category") or ""), mc0 or _first_two(mc1), mc1, mc2)


def _question(text: Any, category: str, *settings: dict[str, bool]) -> Question | None:
    if not isinstance(text, str) or any(set(answers.values()) != {True, False} for answers in settings):
        return None
    mc0, mc1, mc2 = settings
    return Question(question=text, category=category, mc0=mc0, mc1=mc1, mc2=mc2)


def _targets(value: Any) -> dict[str, bool]:
    if not isinstance(value, dict):
        return {}
    if isinstance(value.get("choices"), list) and isinstance(value.get("labels"), list):
        value = dict(zip(value["choices"], value["labels"], strict=False))
    return {str(answer): bool(label) for answer, label in value.items()}


def _first_two(mc1: dict[str, bool]) -> dict[str, bool]:
    """Files from before 2025 name no best false answer; the first one stands for it."""
    true = [answer for answer, is_true in mc1.items() if is_true][:1]
    return dict.fromkeys(true, True) | dict.fromkeys([answer for answer in mc1 if not mc1[answer]][:1], False)


def _parted(answers: Any) -> list[str]:
    """Of a table's cell, parted by semicolons, or of a list."""
    parts = answers if isinstance(answers, list) else str(answers or "").split(";")
    return [answer for part in parts if (answer := str(part).strip())]


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    columns = {_COLUMNS.get(name, name) for name in first}
    return {"question", "mc1_targets"} <= columns or {"question", "best_answer", "incorrect_answers"} <= columns


KIND = Kind(
    name="truthfulqa",
    title=N_("TruthfulQA"),
    shows=N_(
        "Whether true answers seem likelier than popular errors; MC1 and MC2 can be gamed by the form of the answers, "
        "which is why the authors recommend the binary setting since 2025."
    ),
    paper="Lin, Hilton, Evans: TruthfulQA: Measuring How Models Mimic Human Falsehoods, arXiv:2109.07958",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
)
