"""Programming tasks: code is found in answers, run confined, and graded as its own tests say."""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.evaluation import code
from toolbox.inference import unwatched
from toolbox.sandbox.running import Limits, Program, run_all
from toolbox.suites.code import Task

HUMANEVAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval" / "HumanEval.jsonl.gz"
ROWS = (
    [json.loads(line) for line in gzip.decompress(HUMANEVAL.read_bytes()).splitlines()] if HUMANEVAL.is_file() else []
)
SOLUTIONS = {row["task_id"]: row["canonical_solution"] for row in ROWS}
needs_data = pytest.mark.skipif(not HUMANEVAL.is_file(), reason="no HumanEval")
TASK = Task(
    prompt="from typing import List\n\ndef twice(x):\n    return 2 * x\n\n"
    'def total(xs: List[int]) -> int:\n    """The sum."""\n',
    test="def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    entry_point="total",
)
FUNCTION = "def total(xs: List[int]) -> int:\n    return sum(xs)\n"
ANSWERS = {
    "fenced": f"Sure! Here it is:\n\n```python\n{FUNCTION}```\n\nIt adds them up.",
    "bare": f"Here is the function.\n\n{FUNCTION}\nThis sums, as was asked; isn't it nice?",
    "body": "    return sum(xs)",
    "body at the margin": "return sum(xs)",
    "fenced body": "```python\n    return sum(xs)\n```",
    "not closed": f"```py\n{FUNCTION}",
    "example first": f"```python\nprint(total([1]))\n```\nwith\n```python\n{FUNCTION}```",
    "in a list": "1. Write:\n   ```python\n   def total(xs):\n       return sum(xs)\n   ```\n",
    "thought": f"<think>```python\ndef total(xs): return 1\n```</think>\n```python\n{FUNCTION}```",
    "helper": "```python\ndef add(a, b):\n    return a + b\n\ndef total(xs):\n    s = 0\n    for x in xs:\n"
    "        s = add(s, x)\n    return s\n\nif __name__ == '__main__':\n    print(total([1]))\n```",
    "tilde": f"~~~\n{FUNCTION}~~~",
    "given helper": "```python\ndef total(xs: List[int]) -> int:\n    return sum(twice(x) for x in xs) // 2\n```",
}
WRONG = {
    "prose": "I am not able to write this function.",
    "empty": "",
    "other name": "```python\ndef tot(xs): return sum(xs)\n```",
    "wrong": "```python\ndef total(xs): return 3\n```",
}


def graded(task: Task, answers: list[str]) -> list[str]:
    programs = [code.assembled(task, code.extracted(answer, task.entry_point)) for answer in answers]
    return [verdict.outcome for verdict in run_all([Program(program, task.tests) for program in programs])]


def test_code_is_found_in_whatever_answer_holds_it() -> None:
    outcomes = graded(TASK, [*ANSWERS.values(), *WRONG.values()])
    right = dict(zip([*ANSWERS, *WRONG], outcomes, strict=True))
    assert {name for name, outcome in right.items() if outcome == "passed"} == set(ANSWERS)


def test_pass_at_k_is_the_papers_estimator() -> None:
    """Against the mean over all ways to draw k of n, which is what it estimates without bias."""
    assert code.pass_at(1, 10, 3) == pytest.approx(0.3)
    assert code.pass_at(2, 4, 1) == pytest.approx(3 / 6)  # 3 of the 6 pairs hold the one that passes
    assert code.pass_at(10, 20, 0) == 0
    assert code.pass_at(10, 20, 11) == 1
    figures = code._figures([True, False, False, False, False, False, False, False, False, False] * 3, samples=10)
    assert {name: measured.estimate().value for name, measured in figures.items()} == pytest.approx(
        {"pass@1": 0.1, "pass@10": 1.0}
    )


def test_rows_of_ones_own_are_told_by_their_columns(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"text": "Write f, which adds one.", "test_list": ["assert f(1) == 2"], "test_setup_code": "", "task_id": 7},
        {"text": "Write f.", "code": "def f(): pass", "test_list": ["assert f(2) == 3", "assert f(0) == 1"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    suite = suites.resolve(str(path), home)
    assert suite.kind == "code"
    task = code.code.read(path)[1]
    assert "assert f(2) == 3\nassert f(0) == 1" in code.question(task)
    assert graded(task, ["```python\ndef f(x): return x + 1\n```", "def f(x): return 3"]) == ["passed", "failed"]
    path.write_text('{"prompt": "x", "test": ""}')
    with pytest.raises(InputError, match="Row 1 of"):
        suites.resolve(str(path), home)


class Scripted:
    """A subject with a chat template that says what it was made with, and remembers what it was asked."""

    name = "base"

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    def generate(self, conversations: list[Any], **settings: Any) -> list[str]:
        self.asked, self.settings = conversations, settings
        return list(self.answers)


def test_samples_of_a_task_are_figured_together(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(TASK) for _task in range(2)))
    right, wrong = ANSWERS["fenced"], WRONG["wrong"]
    subject = Scripted(right, wrong, wrong, wrong)
    suite = suites.Suite(name="own", kind="code", path=path, samples=2)
    finding = code.measure(subject, suite, 0, unwatched)  # type: ignore[arg-type]
    assert subject.settings["do_sample"]
    assert "```python\nfrom typing import List" in subject.asked[0][0]["content"]
    assert {name: measured.estimate().value for name, measured in finding.metrics.items()} == {"pass@1": 0.25}
    assert [row["outcome"] for row in finding.rows] == ["passed", "failed", "failed", "failed"]
    greedy = code.measure(Scripted(right, wrong), msgspec.structs.replace(suite, samples=1), 0, unwatched)  # type: ignore[arg-type]
    assert greedy.metrics["pass@1"].estimate().value == 0.5


@needs_data
def test_two_of_humanevals_own_solutions_pass_and_fail_when_changed(home: Home) -> None:
    assert suites.resolve(str(HUMANEVAL), home).kind == "code"
    assert _solved(2) == ["passed"] * 2
    assert "passed" not in _solved(2, changed=True)


@needs_data
@pytest.mark.slow
def test_all_of_humanevals_own_solutions_pass_and_fail_when_changed() -> None:
    assert _solved(0) == ["passed"] * 164
    assert "passed" not in _solved(0, changed=True)


def _solved(limit: int, changed: bool = False) -> list[str]:
    """Outcomes of the paper's own solutions; changed: what they return is wrapped, so that every answer is wrong."""
    tasks = code.code.read(HUMANEVAL)[: limit or None]
    spoil = "\n_right = {name}\ndef {name}(*a, **k):\n    return ('wrong', _right(*a, **k))\n"
    programs = [
        Program(
            task.prompt + SOLUTIONS[str(task.task_id)] + (spoil.format(name=task.entry_point) if changed else ""),
            task.tests,
        )
        for task in tasks
    ]
    return [verdict.outcome for verdict in run_all(programs)]


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_judge_in_another_process_says_what_one_process_says() -> None:
    """Over changed solutions, of which some still pass: as the paper's program runs them, and as ours does."""
    changed = [(task, program) for task in code.code.read(HUMANEVAL) for program in _mutants(task)]
    limits = Limits(cpu_s=2)
    apart = run_all([Program(program, task.tests) for task, program in changed], limits)
    whole = [Program(f"{program}\n{task.tests}\ndone = True", "assert done") for task, program in changed]
    together = run_all(whole, limits)
    passed = [verdict.outcome == "passed" for verdict in apart]
    assert passed == [verdict.outcome == "passed" for verdict in together]
    assert (len(passed), sum(passed)) == (258, 28)


def _mutants(task: Task) -> list[str]:
    """Up to two programs that differ from the paper's solution in one number or one comparison."""
    solution = SOLUTIONS[str(task.task_id)]
    swaps = [("<=", "<"), (" > ", " >= "), ("==", "!="), (" + ", " - "), ("1", "2"), ("True", "False"), ("0", "1")]
    made = [solution.replace(old, new, 1) for old, new in swaps if old in solution]
    return [task.prompt + body for body in made[:2]]
