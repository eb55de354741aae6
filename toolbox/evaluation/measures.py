"""What measuring a suite on a model gives: `toolbox.evaluation.KIND.measure` a kind, which `plugins.BUILT_IN` names."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from toolbox import plugins
from toolbox.evaluation.statistics import Measured, Resampled
from toolbox.evaluation.subjects import Subject
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.suites import Suite
from toolbox.suites.kinds import METRICS
from toolbox.suites.metrics import Metric


class Finding(msgspec.Struct, frozen=True):
    """What was measured: figures by metric, and a plain row an item or a profession."""

    metrics: dict[str, Measured]
    rows: list[dict[str, Any]]
    categories: list[dict[str, Any]] = []
    """`{category metric value low high n}`: the suite's main figure by bias type, occupation or the like."""


Measure = Callable[[Subject, Suite, int, Watch], Finding]
"""(model, suite, how many items or 0, whom to tell) → finding. Raises Interrupted by way of the Watch."""


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """What the suite finds on a model. Raises InputError where a plugin's gives no Finding."""
    found = plugins.find("suite", suite.kind)(subject, suite, limit, watch)
    if not isinstance(found, Finding):
        raise plugins.wrong(
            "suite", suite.kind, _("it gives no {kind}").format(kind="toolbox.evaluation.measures.Finding")
        )
    return found


def metric_of(name: str, suite: Suite) -> Metric:
    """What a figure's name stands for: of a plugin's metric what its `ideal`, or `greater_is_better`, says."""
    if name in METRICS and name not in suite.metrics:
        return METRICS[name]
    own = plugins.find("metric", name) if name in suite.metrics else None
    more = getattr(own, "greater_is_better", True)
    return Metric(name, float(getattr(own, "ideal", math.inf if more else -math.inf)))


def mean(values: list[float], bounds: tuple[float, float] | None = None) -> Resampled:
    """The mean of a figure an item, which lies within `bounds`."""
    return Resampled(np.array([[float(value)] for value in values]), _mean, bounds)


def _mean(units: np.ndarray) -> np.ndarray:
    return units[..., 0].mean(-1)
