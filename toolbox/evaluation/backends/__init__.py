"""An evaluation by EvalScope or lm-evaluation-harness, each in its own interpreter (`evaluate --backend`)."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from toolbox import backends, files
from toolbox.backends import BACKENDS
from toolbox.config import find_home
from toolbox.evaluation import adjusted
from toolbox.evaluation.backends.asking import Asking
from toolbox.evaluation.backends.figures import Figure, Told
from toolbox.plan import EvaluatePlan
from toolbox.runs import Reporter, Run, Silent


def run(plan: EvaluatePlan, run: Run, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure every task of the plan by its backend; returns `results[]{suite model metric ideal value low high n}`.

    What the backend itself wrote lies in the run's evaluation/BACKEND/MODEL. `stated` are figures that it gave without
    rows or an error, so that nothing can be said of chance. Raises Interrupted, InputError for a task that it does not
    know or can't measure so, ToolboxError where it fails.
    """
    backend = BACKENDS[plan.backend]
    folder = run.path / "evaluation" / backend.name
    reporter, tasks = reporter or Silent(), backends.tasks(backend, plan.suites, find_home())
    reporter.resumable()
    asking = Asking(plan, backend, tasks, folder, reporter)
    own = {task.name: task.suite.path for task in tasks if task.suite and task.suite.path.is_file()}
    found = {name: asking.told(name) for name in asking.subjects}
    by_suite = {
        suite: {name: told[suite] for name, told in found.items() if suite in told}
        for suite in dict.fromkeys(each for told in found.values() for each in told)
    }
    results = adjusted([row for suite, told in by_suite.items() for row in _rows(suite, told)])
    for place, (suite, told) in enumerate(by_suite.items(), 1):
        files.write_json(run.path / "evaluation" / f"{place}-{_short(suite)}.json", {
            "suite": suite, "kind": backend.name,
            "sha256": files.sha256(own[suite]) if suite in own else _digest(told),
            "results": [row for row in results if row["suite"] == suite],
            "rows": {model: one.rows for model, one in told.items()},
        })  # fmt: skip
    stated = [row for suite, told in by_suite.items() for row in _stated(suite, told)]
    return {"results": results, "stated": stated, "backend": {"name": backend.name, "version": asking.version}}


def _rows(suite: str, found: dict[str, Told]) -> Iterator[dict[str, Any]]:
    """The result rows of one task: each model's, then what the tuning changed."""
    for model, told in found.items():
        for metric, figure in told.metrics.items():
            if measured := figure.measured(told.n):
                yield _row(suite, model, metric, figure, measured.estimate())
    if len(found) < 2:
        return
    before, after = found["base"], found["tuned"]
    for metric in (name for name in before.metrics if name in after.metrics):
        was, is_ = before.metrics[metric].measured(before.n), after.metrics[metric].measured(after.n)
        if was and is_ and type(was) is type(is_):
            yield _row(suite, "difference", metric, after.metrics[metric], is_.difference(was))


def _row(suite: str, model: str, metric: str, figure: Figure, estimate: msgspec.Struct) -> dict[str, Any]:
    row = {"suite": suite, "model": model, "metric": metric, "ideal": "high" if figure.more_is_better else "low"}
    return row | msgspec.structs.asdict(estimate)


def _stated(suite: str, found: dict[str, Told]) -> list[dict[str, Any]]:
    return [
        {"suite": suite, "model": model, "metric": metric, "value": figure.value, "n": told.n}
        for model, told in found.items()
        for metric, figure in told.metrics.items()
        if not figure.measured(told.n)
    ]


def _digest(found: dict[str, Told]) -> str:
    """Of what was asked for: which rows of which tasks, and what is right."""
    rows = next(iter(found.values())).rows
    asked = sorted({(str(row.get("task")), row.get("row", 0), str(row.get("target"))) for row in rows})
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def _short(suite: str) -> str:
    """For a file's name: `rows` of /home/me/rows.jsonl, `general_qa` of general_qa=FOLDER, `tag-task` of a tag's."""
    own = suite.partition("=")[0]
    return Path(own).stem if own.startswith("/") else own.replace("/", "-")
