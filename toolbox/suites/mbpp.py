"""MBPP: short Python functions from one sentence and three tests, whole, sanitized, or with EvalPlus' tests."""

import re
from pathlib import Path
from typing import Any

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.code import METRICS, Task
from toolbox.suites.kind import Kind

ASKED = range(11, 511)
"""The authors' test split by `task_id`; 1 to 10 are for prompts, the rest is to train on."""


class Problem(Task, frozen=True, kw_only=True):
    """A row; `code` is the authors' solution."""

    code: str
    task_id: int

    @property
    def name(self) -> str:
        """The function that its first test calls."""
        called = re.search(r"(\w+)\s*\((?!\s*\w+\s*\()", re.sub(r"\b(?:assert|not|set|sorted|tuple)\b", "", self.shown))
        return called[1] if called else ""


def read(path: Path) -> list[Problem]:
    """The test split; all rows of a file that has none of it. Raises InputError naming a row that can't be used."""
    problems = rows.read(path, Problem, {"text": "prompt"})
    return [problem for problem in problems if problem.task_id in ASKED] or problems


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return {"task_id", "code", "test_list"} <= set(first) and isinstance(first.get("prompt", first.get("text")), str)


KIND = Kind(
    name="mbpp",
    title=N_("MBPP: short functions that pass their tests"),
    shows=N_(
        "Whether a function written from one sentence and three tests passes them; the tests are shown, so that they "
        "can be met without what was meant."
    ),
    paper="J. Austin et al., Program Synthesis with Large Language Models, arXiv:2108.07732",
    metrics=METRICS,
    written=True,
    confined=True,
    looks_like=looks_like,
    read=read,
)
