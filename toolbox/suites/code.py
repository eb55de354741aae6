"""Programming tasks with tests, as HumanEval and MBPP have them, or of your own."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {f"pass@{k}": Metric(f"pass@{k}", math.inf) for k in (1, 10, 100)}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A row. Tests are Python that uses the names which the code leaves, and fails by an error; EvalPlus' `test` holds
    what `test_list` does, and more."""

    prompt: str
    """The beginning of a program, up to where `entry_point` needs a body, as in HumanEval; else what it has to do."""
    test: str = ""
    test_list: list[str] = []
    test_setup_code: str = ""
    test_imports: list[str] = []
    entry_point: str = ""
    """The function that `test` gets as the argument of its `check`."""
    task_id: str | int = ""

    def __post_init__(self) -> None:
        if not self.test and not self.test_list:
            raise ValueError(_("it has no test"))

    @property
    def shown(self) -> str:
        """The tests that a model is shown: those of the authors, where more were added that only grade."""
        return "\n".join(self.test_list) or self.test

    @property
    def begun(self) -> bool:
        """Whether the prompt is a program that has to be completed."""
        return bool(self.entry_point) and defines(self.prompt, self.entry_point)

    @property
    def tests(self) -> str:
        """One program of all tests."""
        checks = "def check(" in self.test and self.entry_point
        parts = [*self.test_imports, self.test_setup_code, self.test, *([] if self.test else self.test_list)]
        return "\n".join([*(part for part in parts if part), *([f"check({self.entry_point})"] if checks else [])])


def defines(code: str, name: str) -> bool:
    """Whether a function of that name is defined at the outermost level."""
    return bool(re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE))


def read(path: Path) -> list[Task]:
    """Raises InputError naming the first row that can't be used."""
    first = rows.first(path)
    if "plus_input" in first and "test" not in first:
        raise InputError(
            _("{path} holds inputs, and no tests that can be run.").format(path=path),
            _("Take EvalPlus' rows for Hugging Face, evalplus/humanevalplus or mbppplus, which have the column test."),
        )
    return rows.read(path, Task, {"text": "prompt"})


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    tested = {"test", "test_list", "plus_input"} & set(first)
    return bool(tested) and isinstance(first.get("prompt", first.get("text")), str)


KIND = Kind(
    name="code",
    title=N_("Programs that pass their tests"),
    shows=N_(
        "Whether short Python functions that a model writes do what their tests ask for; what no test asks is not seen."
    ),
    paper="M. Chen et al., Evaluating Large Language Models Trained on Code, arXiv:2107.03374; "
    "J. Austin et al., Program Synthesis with Large Language Models, arXiv:2108.07732",
    metrics=METRICS,
    written=True,
    confined=True,
    looks_like=looks_like,
    read=read,
)
