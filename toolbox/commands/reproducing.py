"""`runs reproduce`: a plan done again as a new run, on the same model and data, and the numbers compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox import rungs, runs
from toolbox.commands import Session
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.plan import AnyPlan

OF_THE_MACHINE = ("predicted", "measured")
"""Parts of a result that say how a machine did, not what was made."""


class ReproduceOptions(msgspec.Struct, kw_only=True):
    """What `runs reproduce` takes."""

    plan: Annotated[
        str,
        option(N_("A run, or the plan.yaml of one"), ask=True, positional=True, metavar="RUN_OR_PLAN", choices="runs"),
    ]


def reproduce(options: ReproduceOptions, session: Session) -> dict[str, Any]:
    """Do a plan again as a new run, on the same model and data, and compare the numbers."""
    from toolbox import files, plan
    from toolbox.facts import read_plan

    path = Path(options.plan)
    old = Run(path.parent.resolve()) if path.is_file() else runs.find(session.home.runs, options.plan)
    again = _verified(trusted(plan.load(path if path.is_file() else old.plan_path), old, session), session)
    if isinstance(again, plan.MergePlan | plan.ExportPlan):
        again.output = files.free_path(again.output)
    if session.dry_run:
        return {"plan": read_plan(old), "verified": True}
    run = runs.create(session.home.runs, _name(old, again), again)
    rungs.inherit(run, old)
    run.start()
    session.follow(run)
    compared = _compared(old.result(), run.result())
    if compared:
        session.table(
            _("{old} and {new}").format(old=old.id, new=run.id),
            (_("What"), _("Before"), _("Now"), ""),
            [
                (c["name"], f"{c['before']:g}", f"{c['now']:g}", _("equal") if c["equal"] else _("differs"))
                for c in compared
            ],
        )
    return {"run": run.id, "state": run.status().state, **run.result(), "compared": compared}


def trusted(planned: "AnyPlan", old: Run, session: Session) -> "AnyPlan":
    """The plan without a say in which program runs: it may come from somebody else.

    Raises InputError where a plan from elsewhere asks for more than the work of this toolbox.
    """
    from toolbox import engines, exports, plan, plugins

    if old.path.parent != session.home.runs.resolve() and not planned.entry.startswith("toolbox."):
        raise InputError(
            _("The plan in {path} asks for {entry}, which is no work of this toolbox.").format(
                path=old.path, entry=repr(planned.entry)
            ),
            _("Read it: a plan from somebody else may hold anything."),
        )
    if old.path.parent != session.home.runs.resolve() and planned.plugins:
        raise InputError(
            _("The plan in {path} brings plugins, which are programs of whoever made it.").format(path=old.path),
            _("Read them; then do it with your own command and --plugin."),
        )
    planned.plugins = [
        plugins.File(copy if (copy := old.plugin(number, file)).is_file() else file.path, file.sha256)
        for number, file in enumerate(planned.plugins)
    ]
    if isinstance(planned, plan.ServePlan):
        python = engines.ENGINES[planned.engine].interpreter(session.home)
        if python is None:
            raise InputError(_("The engine {name} is not installed.").format(name=planned.engine))
        planned.python = python
    if isinstance(planned, plan.ExportPlan):
        cuda = planned.device.kind == "cuda"
        planned.python = exports.choose(planned.format, cuda, session.home).python(session.home, cuda)
    return planned


def _verified(planned: "AnyPlan", session: Session) -> "AnyPlan":
    """The plan on the model and data as they lie here. Raises InputError where they are not what was planned with."""
    from toolbox import datasets, models

    model = models.resolve(planned.model.id, session.home)
    # The network follows from the rest; plans made before it was kept hold a guess.
    before, now = (
        msgspec.structs.replace(facts, path=Path(), source="", network=model.network)
        for facts in (planned.model, model)
    )
    if before != now:
        raise InputError(
            _("{model} is no longer the model that was planned with.").format(model=planned.model.id),
            _("Fetch that revision again, or make a new plan."),
        )
    found: dict[str, list[datasets.DatasetSpec]] = {}
    for field in ("datasets", "eval_datasets", "calibration"):
        for spec in getattr(planned, field, []):
            here = datasets.resolve(spec.name, session.home, spec.columns, spec.skip_broken)
            if spec.sha256 != here.sha256:
                raise InputError(
                    _("{path} has changed since the plan was made.").format(path=here.path),
                    _("Make the plan again, or bring the old file back."),
                )
            found.setdefault(field, []).append(here)
    return msgspec.structs.replace(planned, model=model, **found)


def _name(old: Run, planned: "AnyPlan") -> str:
    """The old run's name without its date, so that both are found side by side."""
    name = runs.undated(old.id)
    return name if name != old.id else f"{planned.verb}-{planned.model.id}"


def _compared(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers that both results have."""
    old, new = (
        dict(_flat({name: value for name, value in result.items() if name not in OF_THE_MACHINE}))
        for result in (before, now)
    )
    return [
        {"name": name, "before": old[name], "now": value, "equal": old[name] == value}
        for name, value in new.items()
        if isinstance(value, int | float) and isinstance(old.get(name), int | float)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, leaf) of nested objects; the elements of a list are named by the texts in them, else by place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            texts = [text for text in inner.values() if isinstance(text, str)] if isinstance(inner, dict) else []
            yield from _flat(inner, f"{name}[{' '.join(texts) or place}]")
    else:
        yield name, value
