"""IFEval: the share of instructions, and of whole requests, that answers meet, read strictly and leniently."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolbox.evaluation.instructions import met, readings
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Measured, Resampled, Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, ifeval
from toolbox.suites.ifeval import Request
from toolbox.suites.rows import spread

MAX_NEW_TOKENS = 1280
"""As lm-evaluation-harness gives: the longest answers asked for have over 1200 words."""


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Greedy answers, each judged by every instruction of its request."""
    asked = spread(ifeval.read(suite.path), limit)
    conversations = [[{"role": "user", "content": row.prompt}] for row in asked]
    said = subject.generate(conversations, max_new_tokens=MAX_NEW_TOKENS, watch=watch)
    strict = [judged(row, [text]) for row, text in zip(asked, said, strict=True)]
    loose = [judged(row, readings(text)) for row, text in zip(asked, said, strict=True)]
    metrics: dict[str, Measured] = {}
    for name, verdicts in (("strict", strict), ("loose", loose)):
        metrics[f"prompt_level_{name}_acc"] = Share([all(each) for each in verdicts])
        metrics[f"inst_level_{name}_acc"] = _instructions(verdicts)
    table = [
        {
            "key": row.key, "prompt": row.prompt, "said": text,
            "instructions": [
                {"instruction": name, **arguments, "strict": strictly, "loose": loosely}
                for (name, arguments), strictly, loosely in zip(row.instructions(), *verdicts, strict=True)
            ],
        }
        for row, text, verdicts in zip(asked, said, zip(strict, loose, strict=True), strict=True)
    ]  # fmt: skip
    return Finding(metrics, table)


def judged(request: Request, texts: Sequence[str]) -> list[bool]:
    """For each instruction of a request, whether one of the texts meets it."""
    return [any(met(name, text, arguments) for text in texts) for name, arguments in request.instructions()]


def _instructions(verdicts: list[list[bool]]) -> Resampled:
    """A request is the unit that is drawn anew, since the instructions of one answer stand and fall together."""
    return Resampled(np.array([[sum(each), len(each)] for each in verdicts], dtype=float), _ratio, (0.0, 1.0))


def _ratio(units: np.ndarray) -> Any:
    return units[..., 0].sum(-1) / units[..., 1].sum(-1)
