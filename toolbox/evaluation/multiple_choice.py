"""Multiple choice on a model: the likeliest option of each question (`evaluate --suite mmlu`)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Measured, Resampled, Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, rows
from toolbox.suites.multiple_choice import LETTERS, Exam, Question, exams, read


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Accuracy over all questions (`acc`), its mean over subjects where there are several (`acc_macro`), and where
    options are answers of their own, accuracy by likelihood a character (`acc_norm`), as lm-evaluation-harness has it.
    """
    asked = [
        (exam, question)
        for exam in exams(suite.path, rows.spread(read(suite.path), limit))
        for question in exam.questions
    ]
    found = option_log_likelihoods(subject, [(prompt(exam, row), answers(row)) for exam, row in asked], watch)
    table: list[dict[str, Any]] = []
    for (_exam, row), values in zip(asked, found, strict=True):
        by_length = [value / max(1, len(option)) for value, option in zip(values, row.options, strict=True)]
        chosen, chosen_norm = int(np.argmax(values)), int(np.argmax(by_length))
        table.append(
            {
                "question": row.question, "subject": row.subject, "options": row.options, "answer": row.answer,
                "log_likelihoods": values, "chosen": chosen, "right": chosen == row.answer,
                **({} if row.lettered else {"right_norm": chosen_norm == row.answer}),
            }
        )  # fmt: skip
    metrics: dict[str, Measured] = {"acc": Share([row["right"] for row in table])}
    if not any(row.lettered for _exam, row in asked):
        metrics["acc_norm"] = Share([row["right_norm"] for row in table])
    if len({row["subject"] for row in table}) > 1:
        metrics["acc_macro"] = _by_subject(table)
    return Finding(metrics, table)


def option_log_likelihoods(
    subject: Subject, asked: Sequence[tuple[str, Sequence[str]]], watch: Watch
) -> list[list[float]]:
    """ln p of each continuation of each (context, continuations)."""
    scored = iter(subject.texts([(context, one) for context, options in asked for one in options], watch=watch))
    return [[sum(next(scored).log_likelihoods) for _one in options] for _context, options in asked]


def prompt(exam: Exam, question: Question) -> str:
    """Raw text, as the papers ask base models: what it is about, solved examples, the question."""
    shown = [f"{_asked(exam, one)}{answers(one)[one.answer]}\n\n" for one in exam.examples]
    return "".join([*_introduction(exam, question), *shown, _asked(exam, question)])


def _introduction(exam: Exam, question: Question) -> Iterator[str]:
    if question.lettered and exam.chinese:
        yield "以下是单项选择题，请选出其中的正确答案。\n\n"
    elif question.lettered:
        about = f" about {exam.subject.replace('_', ' ')}" if exam.subject else ""
        yield f"The following are multiple choice questions (with answers){about}.\n\n"


def _asked(exam: Exam, question: Question) -> str:
    lead, end = ("问题：", "答案：") if exam.chinese else ("Question: ", "Answer:")
    if not question.lettered:
        return f"{lead}{question.question.strip()}\n{end}"
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, question.options, strict=False))
    return f"{question.question.strip()}\n{options}{end}"


def answers(question: Question) -> list[str]:
    """What is scored: a letter each, or the options themselves."""
    shown = LETTERS[: len(question.options)] if question.lettered else question.options
    return [f" {one}" for one in shown]


def _by_subject(table: list[dict[str, Any]]) -> Resampled:
    """Units (subject, right); the mean of the subjects' accuracies."""
    names = sorted({row["subject"] for row in table})
    units = np.array([(names.index(row["subject"]), row["right"]) for row in table], dtype=float)
    return Resampled(units, _macro, (0.0, 1.0))


def _macro(units: np.ndarray) -> np.ndarray:
    """A subject of which nothing was drawn says nothing."""
    draws = units.reshape(-1, *units.shape[-2:])
    subjects = int(units[..., 0].max()) + 1
    cells = (draws[..., 0].astype(int) + subjects * np.arange(len(draws))[:, None]).ravel()
    asked = np.bincount(cells, minlength=subjects * len(draws)).reshape(-1, subjects)
    right = np.bincount(cells, draws[..., 1].ravel(), subjects * len(draws)).reshape(-1, subjects)
    return np.nanmean(right / np.where(asked > 0, asked, np.nan), axis=-1).reshape(units.shape[:-2])
