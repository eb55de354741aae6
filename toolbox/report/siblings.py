"""Methods compared: trainings of the same model on the same rows in this home, by loss, speed, memory and time."""

from collections.abc import Callable
from typing import Any

from toolbox import runs, units
from toolbox.facts import Facts, read_plan
from toolbox.i18n import _
from toolbox.report import markdown
from toolbox.report.markdown import code, plain
from toolbox.report.story import Story
from toolbox.runs import Run

MOST = 12
"""Trainings in the table, the newest; the chain's own are always among them."""


def siblings(story: Story) -> str:
    """A table for the chain's trainings, where there are others of the same model, rows and stage that ended."""
    own = [facts for facts in story.of_verb("finetune") if facts.result]
    if not own:
        return ""
    found = _alike(own[-1], story)
    if len(found) < 2:
        return ""
    best = {key: _best(key, found) for key, _name, _shown, _wanted in _columns()}
    rows = [_row(plan, result, run, best, {facts.run.id for facts in own}) for run, plan, result in found]
    header = (_("Run"), _("Method"), *(name for _key, name, _shown, _wanted in _columns()))
    told = _("Trainings of the same model on the same rows in this home; the best of a column is bold, and → is this.")
    return markdown.section(_("Methods compared"), told, markdown.table(header, rows))


def _columns() -> list[tuple[str, str, Callable[[float], str], Callable[..., Any]]]:
    """(key of the result, name, how it is written, which of several is best)."""
    return [
        ("train_loss", _("Training loss"), lambda value: f"{value:.4g}", min),
        ("eval_loss", _("Evaluation loss"), lambda value: f"{value:.4g}", min),
        ("tokens_per_s", _("Tokens per second"), lambda value: f"{value:,.0f}", max),
        ("peak_bytes", _("Peak of memory"), units.size, min),
        ("elapsed_s", _("Time"), units.duration, min),
    ]


def _alike(own: Facts, story: Story) -> list[tuple[Run, dict[str, Any], dict[str, Any]]]:
    """Ended trainings of the same model, rows and stage, oldest first; plans that don't name the rows aren't parsed."""
    wanted = _same(own.plan)
    keys = [str(sha256).encode() for sha256 in wanted[1]]
    chained = {facts.run.id for facts in story.of_verb("finetune")}
    found: list[tuple[Run, dict[str, Any], dict[str, Any]]] = []
    for run in runs.every(own.run.path.parent):
        raw = run.plan_path.read_bytes()
        near = raw.startswith(b"verb: finetune\n") and all(key in raw for key in keys)
        if near and (run.id in chained or len(found) < MOST) and (result := run.result()):
            plan = story.hide(read_plan(run))
            if _same(plan) == wanted and result.get("train_loss") is not None:
                found.append((run, plan, result))
    return found[::-1]


def _same(plan: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be equal for a comparison to be of the methods."""
    model = plan.get("model") or {}
    hashes = sorted(str(spec.get("sha256")) for spec in plan.get("datasets") or [] if isinstance(spec, dict))
    return (model.get("id"), model.get("parameters"), model.get("revision")), tuple(hashes), plan.get("stage")


def _best(key: str, found: list[tuple[Run, dict[str, Any], dict[str, Any]]]) -> float | None:
    values = [result[key] for _run, _plan, result in found if isinstance(result.get(key), int | float)]
    choose = next(choose for name, _name, _shown, choose in _columns() if name == key)
    return choose(values) if len(set(values)) > 1 else None


def _row(
    plan: dict[str, Any], result: dict[str, Any], run: Run, best: dict[str, float | None], own: set[str]
) -> list[str]:
    cells = [f"→ {code(run.id)}" if run.id in own else code(run.id), plain(settings(plan))]
    for key, _name, shown, _choose in _columns():
        value = result.get(key)
        text = shown(value) if isinstance(value, int | float) else ""
        cells.append(f"**{text}**" if value is not None and value == best[key] else text)
    return cells


def settings(plan: dict[str, Any]) -> str:
    """The method with the numbers that tell two runs of it apart."""
    training = plan.get("training") or {}
    batch = training.get("per_device_train_batch_size", 1) * training.get("gradient_accumulation_steps", 1)
    parts = [str(plan.get("method", "")), str(plan.get("dtype", ""))]
    rank = (plan.get("LoraConfig") or {}).get("r")
    parts += [f"r {rank}"] if rank else []
    return ", ".join([*parts, f"lr {training.get('learning_rate', 0):g}", _("batch {rows}").format(rows=batch)])
