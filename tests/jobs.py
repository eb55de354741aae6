"""Work that takes no model, for tests of what happens around a job: it counts, slowly, and saves when asked to stop."""

import select
import time
from typing import Any

from toolbox import files
from toolbox.errors import InputError, Interrupted
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run

STEP_S = 0.03


def count(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Count to max_steps; a checkpoint is the number reached."""
    kept = files.read_json(run.checkpoints / "checkpoint-1" / "complete.json") or {"step": 0}
    reporter.resumed(kept["step"])
    reporter.phase("Counting")
    steps = plan.training.max_steps
    for step in range(kept["step"] + 1, steps + 1):
        if reporter.stopping:
            files.write_json(run.checkpoints / "checkpoint-1" / "complete.json", {"step": step - 1})
            raise Interrupted(f"Stopped after {step - 1}.", f"runs resume {run.id}")
        select.select([], [], [], STEP_S)  # libfaketime lets no time.sleep through
        reporter.progress(step, steps, loss=1 / step, learning_rate=1e-3, memory_bytes=1 << 20)
    return {"run": run.id, "steps": steps, "train_loss": 1 / steps, "from_step": kept["step"]}


def jumping(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Count, while the clock jumps ten days on, then twenty back."""
    reporter.phase("Counting")
    honest, steps = time.time, plan.training.max_steps
    try:
        for step in range(1, steps + 1):
            days = 10 if step < steps // 2 else -10
            time.time = lambda days=days: honest() + days * 86400  # type: ignore[misc]
            time.sleep(STEP_S)
            reporter.progress(step, steps, loss=1.0)
    finally:
        time.time = honest  # type: ignore[misc]
    return {}


def hang(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Wait for ever, as for a GPU that is gone."""
    reporter.phase("Waiting")
    while True:
        time.sleep(STEP_S)


def deaf(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Count, whatever anybody asks."""
    reporter.phase("Counting")
    for step in range(1, plan.training.max_steps + 1):
        time.sleep(STEP_S)
        reporter.progress(step, plan.training.max_steps)
    return {}


def refuse(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    raise InputError("Row 57 is broken.", "Mend it.")


def crash(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    raise ZeroDivisionError("by zero")


def serve(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Be ready until asked to stop."""
    reporter.ready(url="http://127.0.0.1:1", pid=1)
    while not reporter.stopping:
        time.sleep(STEP_S)
    return {"url": "http://127.0.0.1:1"}
