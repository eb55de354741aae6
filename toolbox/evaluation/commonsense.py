"""HellaSwag, WinoGrande, PIQA, BoolQ and OpenBookQA on a model: the likeliest ending (`evaluate --suite FILE`)."""

from typing import Any

import numpy as np

from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Share
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, commonsense, rows


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Accuracy of the likeliest option (`acc`), and by likelihood a character (`acc_norm`) where lengths differ."""
    items = rows.spread(commonsense.read(suite.path), limit)
    scored = iter(subject.texts([pair for item in items for pair in item.pairs], watch=watch))
    table: list[dict[str, Any]] = []
    for item in items:
        values = [float(sum(next(scored).log_likelihoods)) for _pair in item.pairs]
        lengths = [max(1, len(continuation) - 1) for _context, continuation in item.pairs]
        table.append(
            {
                "pairs": item.pairs, "answer": item.answer, "log_likelihoods": values,
                "right": int(np.argmax(values)) == item.answer,
                "right_norm": int(np.argmax(np.divide(values, lengths))) == item.answer,
            }
        )  # fmt: skip
    metrics = {"acc": Share([row["right"] for row in table])}
    if all(item.by_length for item in items):
        metrics["acc_norm"] = Share([row["right_norm"] for row in table])
    return Finding({**metrics}, table)
