"""Programming tasks: the share of a model's programs that pass their tests, run confined (HumanEval, MBPP)."""

import ast
import math
import re
import textwrap
import warnings
from collections.abc import Sequence

from toolbox.evaluation.measures import Finding, mean
from toolbox.evaluation.statistics import Measured, Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.sandbox import running
from toolbox.suites import Suite, code
from toolbox.suites.code import Task, defines
from toolbox.suites.rows import spread

MAX_NEW_TOKENS = 768
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a completed function has ended (arXiv:2107.03374, section 2.2)."""
KS = (1, 10, 100)
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_BEGINNING = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """pass@1 of greedy answers, or with samples pass@k. Raises InputError, before all else, where no sandbox holds."""
    running.check()
    tasks = [task for task in spread(code.read(suite.path), limit) for _sample in range(suite.samples)]
    programs = written(subject, tasks, suite.samples > 1, lambda done, total: watch(done, 2 * total))
    return graded(tasks, programs, suite.samples, lambda done, total: watch(total + done, 2 * total))


def graded(tasks: Sequence[Task], programs: Sequence[str], samples: int, watch: Watch) -> Finding:
    """What comes of the programs, `samples` of each task together, when their tests are run."""
    verdicts = running.run_all(
        [running.Program(program, task.tests) for task, program in zip(tasks, programs, strict=True)], watch=watch
    )
    passed = [verdict.outcome == "passed" for verdict in verdicts]
    table = [
        {
            "task_id": task.task_id, "prompt": task.prompt, "code": program,
            "outcome": verdict.outcome, "detail": verdict.detail, "confined_by": verdict.held,
        }
        for task, program, verdict in zip(tasks, programs, verdicts, strict=True)
    ]  # fmt: skip
    return Finding(_figures(passed, samples), table)


def _figures(passed: list[bool], samples: int) -> dict[str, Measured]:
    """By metric; the answers to a task stand together, and a task is the unit."""
    if samples == 1:
        return {"pass@1": Share(passed)}
    right = [sum(passed[begin : begin + samples]) for begin in range(0, len(passed), samples)]
    return {f"pass@{k}": mean([pass_at(k, samples, count) for count in right], (0.0, 1.0)) for k in KS if k <= samples}


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that one of `k` samples passes, where `c` of `n` did: 1 - C(n-c, k) / C(n, k), without bias
    (arXiv:2107.03374, equation 1)."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def written(subject: Subject, tasks: list[Task], do_sample: bool, watch: Watch) -> list[str]:
    """A program for each task. A model without a chat template goes on with the prompt, any other is asked for it."""
    tokenizer = getattr(subject, "tokenizer", None)
    if tokenizer is not None and not tokenizer.chat_template and all(task.begun for task in tasks):
        prompts = [task.prompt for task in tasks]
        if not do_sample:
            said = subject.complete(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=STOP, watch=watch)
        else:  # without a template a question is its text and a line's end
            asked = [[{"role": "user", "content": prompt.removesuffix("\n")}] for prompt in prompts]
            said = subject.generate(asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, stop=STOP, watch=watch)
        return [prompt + text for prompt, text in zip(prompts, said, strict=True)]
    asked = [[{"role": "user", "content": question(task)}] for task in tasks]
    said = subject.generate(asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=do_sample, watch=watch)
    return [assembled(task, extracted(text, task.entry_point)) for task, text in zip(tasks, said, strict=True)]


def question(task: Task) -> str:
    """What a model is asked. Not translated: the tasks are in English, and a figure must not depend on the menu's."""
    if task.begun:
        wish = "Complete this Python function. Answer with the whole function, in one block of code."
        return f"{wish}\n\n```python\n{task.prompt.rstrip()}\n```"
    wish = "Answer with Python in one block of code. It has to pass these tests:"
    return f"{task.prompt.strip()}\n\n{wish}\n\n```python\n{task.shown.strip()}\n```"


def extracted(text: str, name: str = "") -> str:
    """The code in an answer: the first block that defines `name`, else the first block, else what reads as Python."""
    text = text.rpartition("</think>")[2]
    blocks = [textwrap.dedent(found[2]) for found in _FENCE.finditer(text)]
    if blocks:
        return next((block for block in blocks if name and defines(block, name)), blocks[0])
    if beginning := _BEGINNING.search(text):
        lines = text[beginning.start() :].splitlines()
        ends = (end for end in range(len(lines), 0, -1) if _parses("\n".join(lines[:end])))
        return "\n".join(lines[: next(ends, len(lines))])
    return text


def assembled(task: Task, answer: str) -> str:
    """A whole program: what stands before the function in the prompt (imports, helpers) stays, an answer that is only
    a body goes under the prompt."""
    if not task.begun:
        return answer
    if defines(answer, task.entry_point):
        begin = re.search(rf"^(?:async )?def {re.escape(task.entry_point)}\b", task.prompt, re.MULTILINE)
        return f"{task.prompt[: begin.start() if begin else 0]}{answer}\n"
    first = next((line for line in answer.splitlines() if line.strip()), "")
    body = answer if first[:1].isspace() else textwrap.indent(answer, "    ")
    return f"{task.prompt}{body}\n"


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
