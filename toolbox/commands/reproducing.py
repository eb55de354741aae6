"""`runs reproduce`: a report's whole chain, or a run's plan, done again, and every number it stated compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox import rungs, runs
from toolbox.commands import Session
from toolbox.errors import FAILED, InputError
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.plan import AnyPlan
    from toolbox.report.reproduction import Compared

MOST_NAMED = 5
"""Numbers that differ, named in the last sentence."""


class ReproduceOptions(msgspec.Struct, kw_only=True):
    """What `runs reproduce` takes."""

    plan: Annotated[
        str,
        option(
            N_("A report.md (- for standard input), a run, or the plan.yaml of one"),
            ask=True, positional=True, metavar="REPORT_OR_RUN", choices="runs",
        ),
    ]  # fmt: skip
    data: Annotated[
        list[str],
        option(N_("Where a file or folder lies that the report names and no hub has"), metavar="NAME=PATH"),
    ] = msgspec.field(default_factory=list)
    strict: Annotated[bool, option(N_("Stop where versions differ from the report's"))] = False
    anew: Annotated[bool, option(N_("Begin anew, even where an earlier attempt was not finished"))] = False


def reproduce(options: ReproduceOptions, session: Session) -> dict[str, Any]:
    """Do a report's chain again, or a run alone; the `--json` object: `steps held differed reported skipped`."""
    path = Path(options.plan)
    if options.plan == "-" or (path.is_file() and path.suffix not in (".yaml", ".yml")):
        from toolbox.commands import chained

        return chained.reproduce(options, session)
    return _run(options, session)


def _run(options: ReproduceOptions, session: Session) -> dict[str, Any]:
    """A run's plan as a new run, on the same model and data."""
    from toolbox import files, plan
    from toolbox.facts import Facts, read_plan
    from toolbox.report import reproduction, stated

    path = Path(options.plan)
    old = Run(path.parent.resolve()) if path.is_file() else runs.find(session.home.runs, options.plan)
    again = _verified(trusted(plan.load(path if path.is_file() else old.plan_path), old, session), session)
    if isinstance(again, plan.MergePlan | plan.ExportPlan):
        again.output = files.free_path(again.output)
    if isinstance(again, plan.EvaluatePlan):
        again.cached = False
    if session.dry_run:
        return {"plan": read_plan(old), "verified": True}
    run = runs.create(session.home.runs, _name(old, again), again)
    rungs.inherit(run, old)
    run.start()
    session.follow(run)
    before = Facts.of(old)
    machine = stated.machine(before.plan.get("device"), before.env)
    compared = reproduction.compare(stated.numbers(before), machine, Facts.of(run))
    result = {"run": run.id, "state": run.status().state, **run.result()}
    return {**result, **told(compared, [_("{old} and {new}").format(old=old.id, new=run.id)], session)}


def told(compared: "list[Compared]", titles: list[str], session: Session) -> dict[str, Any]:
    """Show what was compared, a table a step, and say whether all holds; their part of the `--json` object."""
    from toolbox.report import reproduction

    for step, title in enumerate(titles, 1):
        if rows := reproduction.rows([one for one in compared if one.step == step]):
            session.table(title, (_("What"), _("Stated"), _("Now"), ""), rows)
    by: dict[str, list[dict[str, Any]]] = {"held": [], "differed": [], "reported": []}
    for one in compared:
        by[one.verdict].append({k: v for k, v in msgspec.structs.asdict(one).items() if k != "verdict"})
    counts = {verdict: len(found) for verdict, found in by.items()}
    summary = _("{held} numbers hold, {differed} differ, {reported} are of the machine and only said.")
    if compared:
        session.say(summary.format(**counts))
    if not by["differed"]:
        return by
    named = "; ".join(f"{one['name']}: {one['stated']} → {one['now']}" for one in by["differed"][:MOST_NAMED])
    session.say(_("✗ Not as stated: {numbers}").format(numbers=named))
    return {**by, "exit_status": FAILED}


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
        cuda, kind = planned.device.kind == "cuda", planned.type
        planned.python = exports.choose(planned.format, kind, cuda, session.home).python(session.home, kind, cuda)
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
