"""Exact match of short answers, and the metrics of plugins for them."""

import math
import unicodedata
from typing import Any, Protocol

from toolbox import plugins
from toolbox.evaluation.measures import Finding, mean
from toolbox.evaluation.statistics import Measured, Share
from toolbox.evaluation.subjects import Subject
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.suites import Suite, exact_match
from toolbox.suites.exact_match import Question
from toolbox.suites.rows import spread


class OfAnswer(Protocol):
    """What a metric of an answer is, built in or a plugin's.

    Beside it may stand `ideal`, the best value of its mean, or `greater_is_better`, which is taken to be true.
    """

    def __call__(self, question: Question, said: str) -> float | bool: ...


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """The share of questions whose greedy answer is one of the accepted ones, and the suite's metrics of plugins."""
    asked = spread(exact_match.read(suite.path), limit)
    conversations = [
        [
            *([{"role": "system", "content": row.system}] if row.system else []),
            {"role": "user", "content": row.question},
        ]
        for row in asked
    ]
    said = subject.generate(conversations, watch=watch)
    found = {name: _of_each(name, asked, said) for name in ("exact_match", *suite.metrics)}
    table = [
        {
            "question": row.question, "answers": row.answers, "said": text, "right": found["exact_match"][place],
            **{name: found[name][place] for name in suite.metrics},
        }
        for place, (row, text) in enumerate(zip(asked, said, strict=True))
    ]  # fmt: skip
    return Finding({name: _summed(values) for name, values in found.items()}, table)


def _of_each(name: str, asked: list[Question], said: list[str]) -> list[Any]:
    """A metric of every answer. Raises InputError where a plugin's gives something else than a number."""
    metric: OfAnswer = plugins.find("metric", name)
    values = [metric(row, text) for row, text in zip(asked, said, strict=True)]
    if bad := [value for value in values if not isinstance(value, bool | int | float) or not math.isfinite(value)]:
        raise plugins.wrong("metric", name, _("it gives {value!r} and has to give a number").format(value=bad[0]))
    return values


def _summed(values: list[Any]) -> Measured:
    """A share of right answers where every value is yes or no, else their mean."""
    return Share(values) if all(isinstance(value, bool) for value in values) else mean(values)


def exact(question: Question, said: str) -> bool:
    """Whether an answer is one of the accepted ones, up to case, width and the last mark."""
    return normalise(said) in {normalise(answer) for answer in question.answers}


def normalise(text: str) -> str:
    """For comparing answers: one width and case, single spaces, no mark at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!").strip()
