"""GSM8K on a model: problems solved in its own words, graded by the number it ends with (`evaluate --suite gsm8k`)."""

import re
from typing import Any

from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Conversation, Watch
from toolbox.suites import Suite, numbers, rows
from toolbox.suites.gsm8k import Problem, read

MAX_NEW_TOKENS = 512
"""The longest of the test set's own solutions has about 400 tokens; models that show their work write no more."""
ASKED = "Solve it step by step. Then write the result alone on the last line, as: #### NUMBER"
ASKED_ZH = "请一步一步地解答，最后一行只写结果，格式为：#### 数字"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Shares of right numbers: stated behind a mark ("#### 18"; strict), or that or else the last one (flexible)."""
    problems = rows.spread(read(suite.path), limit)
    said = subject.generate([asked(problem) for problem in problems], max_new_tokens=MAX_NEW_TOKENS, watch=watch)
    table: list[dict[str, Any]] = []
    for problem, text in zip(problems, said, strict=True):
        strict, flexible = numbers.stated(text), numbers.final(text)
        table.append(
            {
                "question": problem.question, "answer": _shown(problem.number), "said": text,
                "found": _shown(flexible), "right_strict": strict is not None and strict == problem.number,
                "right_flexible": flexible is not None and flexible == problem.number,
            }
        )  # fmt: skip
    return Finding(
        {f"exact_match_{how}": Share([row[f"right_{how}"] for row in table]) for how in ("strict", "flexible")}, table
    )


def asked(problem: Problem) -> Conversation:
    """The prompt, in the language of the problem, without examples: what a tuned model is asked in use."""
    wish = ASKED_ZH if CHINESE.search(problem.question) else ASKED
    return [{"role": "user", "content": f"{problem.question}\n\n{wish}"}]


def _shown(number: object) -> str:
    return "" if number is None else str(number)
