"""Answers to open questions, which a judge looks at once all models have answered (`judging.py`)."""

from toolbox.evaluation.measures import Finding
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, open_questions
from toolbox.suites.rows import spread

ANSWER_TOKENS = 512


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """The answers, greedy; their marks come from the judge."""
    asked = spread(open_questions.read(suite.path), limit)
    talks = [
        [
            *([{"role": "system", "content": row.system}] if row.system else []),
            {"role": "user", "content": row.question},
        ]
        for row in asked
    ]
    said = subject.generate(talks, max_new_tokens=ANSWER_TOKENS, watch=watch)
    return Finding({}, [{"question": row.question, "said": text} for row, text in zip(asked, said, strict=True)])
