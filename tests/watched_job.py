"""A training that tells what was imported when its first step began, as the entry of a job."""

import gc
import sys
from typing import Any

from toolbox import training
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run, Silent


def train(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Train; returns the result, with what `Watch` saw."""
    watch = Watch()
    return {**training.run(plan, run, watch), **watch.seen, "metrics": watch.metrics}


class Watch(Silent):
    """Sees what is there when a training's first step begins, and what it tells."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.metrics: list[dict[str, float]] = []

    def resumed(self, step: int) -> None:
        self.seen = {"modules": sorted(name for name, module in sys.modules.items() if module), "gc": gc.isenabled()}

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        self.metrics.append({"step": step, **metrics})
