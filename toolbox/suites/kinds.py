"""All kinds of suites that are built in, a module each; a new one is a line here, and one in plugins.BUILT_IN."""

from typing import Any

from toolbox.suites import (
    bbq,
    cbbq,
    code,
    commonsense,
    crows_pairs,
    exact_match,
    gender,
    gsm8k,
    ifeval,
    math_problems,
    mbpp,
    multiple_choice,
    open_questions,
    perplexity,
    stereoset,
    text,
    truthfulqa,
    winobias,
    winogender,
)
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric, ideal

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND
    for module in (
        mbpp,
        code,
        ifeval,
        exact_match,
        gender,
        crows_pairs,
        winobias,
        winogender,
        stereoset,
        bbq,
        cbbq,
        gsm8k,
        math_problems,
        truthfulqa,
        commonsense,
        multiple_choice,
        open_questions,
        perplexity,
        text,
    )
}
"""In the order in which a file is tried."""
METRICS: dict[str, Metric] = {name: metric for kind in KINDS.values() for name, metric in kind.metrics.items()}
"""The metrics of all kinds; names are unique, or mean the same."""


def metric(row: dict[str, Any]) -> Metric:
    """What a row of results is about; a plugin's metric is called as it is."""
    known = METRICS.get(row["metric"])
    return Metric(known.label if known else row["metric"], ideal(row))
