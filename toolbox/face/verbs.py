"""`toolbox.merge` and `toolbox.evaluate`: the verbs of these names from Python, in the caller's process."""

from pathlib import Path
from typing import Any

from toolbox import runs
from toolbox.commands import evaluate as evaluating
from toolbox.commands import merge as merging
from toolbox.face.here import carry_out_here
from toolbox.face.models import LanguageModel, load_model
from toolbox.face.session import built, open_session
from toolbox.face.trainers import Trainer

Tuned = LanguageModel | Trainer | str | Path


def merge(
    model: Tuned, *, output: str | Path = "", dtype: str = "auto", home: str | None = None, silent: bool = False
) -> LanguageModel:
    """The model with its adapter merged in and proved equal; `output`: its new folder, else below HOME/models/merged.

    `model`: what `load_model` or a trainer gave, or a run's id. The proof stands in the run's report.
    Raises InputError for what can't be merged, ToolboxError where the proof fails.
    """
    session = open_session(home, silent)
    named: dict[str, Any] = _named(model, home)
    named |= {"adapter": [named["adapter"]]} if named.get("adapter") else {}
    options = built(merging.MergeOptions, "merge", {**named, "output": output or "", "dtype": dtype})
    plan = merging.make_plan(options, session)
    run = runs.create(session.home.runs, f"merge-{Path(plan.model.id).name}", plan)
    result = carry_out_here(run, silent)
    merging.show_proof(result["proof"], session)
    return load_model(run=run.id, home=str(session.home.path))


def evaluate(
    model: Tuned,
    suite: str | list[str] | None = None,
    *,
    limit: int = 0,
    compare: bool = True,
    home: str | None = None,
    silent: bool = False,
) -> list[dict[str, Any]]:
    """`suite model metric value low high n` a row: what `evaluate --json` calls results.

    `suite`: names, or JSONL files; none: all that are shipped. `compare`: measure the base model too.
    Raises InputError for a model or a suite that can't be used, OutOfMemoryError.
    """
    session = open_session(home, silent)
    suites = [suite] if isinstance(suite, str) else suite
    given = {**_named(model, home), "suite": suites, "limit": limit, "compare": compare}
    plan = evaluating.make_plan(built(evaluating.EvaluateOptions, "evaluate", given), session)
    run = runs.create(session.home.prepare().runs, evaluating.run_name(plan), plan)
    results: list[dict[str, Any]] = carry_out_here(run, silent)["results"]
    evaluating.show_results(results, session)
    return results


def _named(model: Tuned, home: str | None) -> dict[str, str]:
    """The options that name the model to a verb; a run's id is a run."""
    if isinstance(model, Trainer):
        model = model.model
    if isinstance(model, LanguageModel):
        return model.named
    if model == "last" or any(run.id == model for run in runs.every(open_session(home).home.runs)):
        return {"run": str(model)}
    return {"model": str(model)}
