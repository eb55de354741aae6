"""A subject that says what a test tells it to, for what suites make of likelihoods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolbox.evaluation.subjects import Scored
from toolbox.inference import unwatched
from toolbox.suites import Suite


class Told:
    """A subject whose likelihoods a test says: of a text by its words, of an option by the option."""

    name = "base"

    def __init__(self, values: dict[str, float], otherwise: float = -9.0) -> None:
        self.values, self.otherwise = values, otherwise

    def _of(self, text: str) -> float:
        return next((value for word, value in self.values.items() if word in text), self.otherwise)

    def texts(self, pairs: Sequence[tuple[str, str]], watch: Any = unwatched) -> list[Scored]:
        return [Scored([self._of(continuation)], [continuation], False) for _context, continuation in pairs]

    def choices(self, questions: Sequence[Any], watch: Any = unwatched) -> list[list[float]]:
        found = []
        for conversation, _prefix, letters in questions:
            lines = conversation[0]["content"].splitlines()
            found.append([self._of(next(line for line in lines if line.startswith(f"{one}. "))) for one in letters])
        return found


def measured(kind: Any, path: Path, subject: Told) -> dict[str, float]:
    suite = Suite(name="s", kind=kind.__name__.rpartition(".")[2], path=path)
    found = kind.measure(subject, suite, 0, unwatched)
    return {name: float(one.estimate().value) for name, one in found.metrics.items()}
