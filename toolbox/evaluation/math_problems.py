"""MATH on a model: problems solved in its own words, graded by what it puts in a box (`evaluate --suite FILE`)."""

from typing import Any

from toolbox.evaluation.gsm8k import CHINESE
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, math_problems
from toolbox.suites.rows import spread

MAX_NEW_TOKENS = 1024
ASKED = "Reason step by step, and put the final answer within \\boxed{}."
ASKED_ZH = "请一步一步地推理，最后把答案写在 \\boxed{} 里。"


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """The share of problems whose last box holds the answer; asked by the chat template, without examples."""
    problems = spread(math_problems.read(suite.path), limit)
    talks = [
        [{"role": "user", "content": f"{one.problem}\n\n{ASKED_ZH if CHINESE.search(one.problem) else ASKED}"}]
        for one in problems
    ]
    said = subject.generate(talks, max_new_tokens=MAX_NEW_TOKENS, watch=watch)
    table: list[dict[str, Any]] = []
    for problem, text in zip(problems, said, strict=True):
        found, wanted = math_problems.boxed(text), problem.wanted or ""
        right = found is not None and math_problems.same(found, wanted)
        table.append({"problem": problem.problem, "answer": wanted, "said": text, "found": found, "right": right})
    return Finding({"exact_match": Share([row["right"] for row in table])}, table)
