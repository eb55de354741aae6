"""`evaluate --repair`: measure a gender bias, make rows against it, train, and measure what the training never saw."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Session, evaluate
from toolbox.errors import DONE, FAILED, InputError, Interrupted
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.commands.evaluate import EvaluateOptions
    from toolbox.plan import FinetunePlan
    from toolbox.runs import Run

SMALL = 50_000_000
"""Parameters up to which a model is tuned as the embedded one is."""
RECIPES = {"dpo": "repair-tiny", "sft": "cpu-tiny"}
"""For small models; what suits others is planned by their hardware."""
STEPS = (N_("Measure"), N_("Make data"), N_("Fine-tune"), N_("Measure again"))


def run(options: "EvaluateOptions", session: Session) -> dict[str, Any]:
    """The whole loop, or what is left of one; `--json`: what the last evaluation found, `repair` and all runs."""
    from toolbox import embedded
    from toolbox.commands.data import RepairOptions, repairing
    from toolbox.repairing import HELD_OUT, SEEN

    begun = time.monotonic()
    if options.adapter or options.endpoint:
        raise InputError(
            _("A repair begins with a model on this machine, not with an adapter or a server."),
            _("Name one with --model; an adapter can be merged into its base first."),
        )
    options = _of_merged(options, session)
    measured, tuned = _so_far(options, session)
    gender, others = _suites(options, session)
    if measured is None:
        _step(1, session)
        asked = [gender, embedded.GENERAL]
        measured = _measure(msgspec.structs.replace(options, suite=asked, run=""), "", options, session)
        if session.dry_run:
            return measured
    if tuned is None:
        _step(2, session)
        made = repairing.make(
            RepairOptions(
                source=measured["run"], stage=_stage(options), general=options.general,
                seed=options.seed,
            ),
            session,
        )  # fmt: skip
        _step(3, session)
        tuned = _train(made, options, session)
    _show_strength(tuned.result().get("strength"), session)
    folder = _data(tuned).parent
    _step(4, session)
    suites = [str(folder / name) for name in (HELD_OUT, SEEN)]
    again = msgspec.structs.replace(options, model="", run=tuned.id, suite=[*suites, *others])
    result = _measure(again, tuned.id, options, session)
    _show(result, session)
    took_s = round(time.monotonic() - begun, 1)
    status = DONE if result["repair"]["kept"] else FAILED
    runs = [measured["run"], tuned.id, result["run"]]
    return {**result, "runs": runs, "data": str(folder), "took_s": took_s, "exit_status": status}


def _of_merged(options: "EvaluateOptions", session: Session) -> "EvaluateOptions":
    """`--run` of a merge names the model to begin with. Raises InputError for an ordinary training's.

    Any other run is an earlier loop's.
    """
    from toolbox import runs

    found = runs.find(session.home.runs, options.run) if options.run else None
    if found and found.status().verb == "merge" and (output := found.result().get("output")):
        return msgspec.structs.replace(options, run="", model=str(output))
    if found and found.adapter.is_dir() and not _record(found):
        raise InputError(
            _("{run} has made an adapter, and a repair begins with a whole model.").format(run=found.id),
            _("Merge it first: {command}").format(command=found.command("merge", "--run")),
        )
    return options


def _stage(options: "EvaluateOptions") -> Any:
    return options.repair


def _step(number: int, session: Session) -> None:
    session.say(f"\n━━ {number}/{len(STEPS)} {_(STEPS[number - 1])}")


def _so_far(options: "EvaluateOptions", session: Session) -> "tuple[dict[str, Any] | None, Run | None]":
    """What `--run` names of an earlier loop: (its first evaluation, its training), None what is to be done."""
    from toolbox import runs

    if not options.run:
        return None, None
    found = runs.find(session.home.runs, options.run)
    verb = found.status().verb
    if verb == "evaluate":
        return {"run": found.id}, None
    if verb == "finetune" and (record := _record(found)):
        return {"run": record.get("evaluation", "")}, _trained(found, options, session)
    raise InputError(
        _("{run} is no part of a repair.").format(run=found.id),
        _("Name the evaluation that measured the bias, or the training that was interrupted; or begin with --model."),
    )


def _record(run: "Run") -> dict[str, Any] | None:
    from toolbox import files, repairing

    return files.read_json(_data(run).parent / repairing.RECORD)


def _data(run: "Run") -> Path:
    """The file that a run was trained on; of several the first."""
    from toolbox.plan import FinetunePlan, load

    plan = load(run.plan_path)
    return plan.datasets[0].path if isinstance(plan, FinetunePlan) and plan.datasets else Path()


def _trained(run: "Run", options: "EvaluateOptions", session: Session) -> "Run":
    """A training of an earlier loop, done to its end. Raises InputError where it can't be gone on with."""
    from toolbox.commands import runs as listing

    status = run.status()
    if status.state != "done" and (reason := listing.why_not_resumable(run, status)):
        raise InputError(
            _("{run} can't be resumed: {reason}.").format(run=run.id, reason=reason),
            _("Go on from the evaluation before it, with --run."),
        )
    if status.state != "done" and not session.dry_run:
        run.start()
        with _going_on(run.id, options, session):
            session.follow(run)
    return run


def _suites(options: "EvaluateOptions", session: Session) -> tuple[str, list[str]]:
    """(the gender probe, the suites that tell what else changed). Raises InputError where none is a gender probe."""
    from toolbox import embedded, suites

    found = suites.resolve_all(options.suite or list(embedded.SUITES), session.home)
    gender = next((suite.name for suite in found if suite.kind == "gender"), "")
    if not gender and not options.run:
        raise InputError(
            _("None of these suites measures a gender bias."), _("Add demo-bias, or a file of your own portraits.")
        )
    return gender, [suite.name for suite in found if suite.kind != "gender"]


def _measure(asked: "EvaluateOptions", before: str, options: "EvaluateOptions", session: Session) -> dict[str, Any]:
    """An ordinary evaluation. `before`: the run from which the loop goes on where this is interrupted."""
    with _going_on(before, options, session):
        return evaluate.measure(asked, session, tell=not before)


def _train(made: dict[str, Any], options: "EvaluateOptions", session: Session) -> "Run":
    from toolbox.commands import finetune

    plan = _plan(made, options, session)
    finetune.show(plan, session)
    started = finetune.start(plan, session)
    with _going_on(started.id, options, session):
        session.follow(started)
    return started


def _plan(made: dict[str, Any], options: "EvaluateOptions", session: Session) -> "FinetunePlan":
    """A fine-tuning with the beta that the pairs were counted for."""
    from toolbox import models
    from toolbox.commands.finetune import Options, make_plan

    small = models.resolve(made["model"], session.home).parameters <= SMALL
    return make_plan(
        Options(
            model=made["model"],
            dataset=[made["train"]],
            stage=_stage(options),
            recipe=options.recipe or (RECIPES[options.repair] if small else ""),
            set=[f"dpo.beta={made['beta']:g}"] if options.repair == "dpo" else [],
            seed=options.seed,
        ),
        session,
    )


@contextmanager
def _going_on(run: str, options: "EvaluateOptions", session: Session) -> Iterator[None]:
    """An interruption inside says by which command the loop goes on from `run`, or begins again where it is empty."""
    from toolbox.config import command_line

    try:
        yield
    except Interrupted as error:
        command = command_line(session.home.path, *words(run, options))
        raise Interrupted(error.message, _("It goes on with: {command}").format(command=command)) from error


def words(run: str, options: "EvaluateOptions") -> list[str]:
    """What goes on from `run` with the same loop, or begins it again where `run` is empty."""
    said = ["evaluate", *(["--run", run] if run else ["--model", options.model])]
    said += ["--repair", options.repair, "--seed", str(options.seed)]
    said += ["--suite", *options.suite] if options.suite else []
    said += ["--general", *options.general] if options.general else []
    said += ["--recipe", options.recipe] if options.recipe else []
    return [*said, "--limit", str(options.limit)] if options.limit else said


def _show_strength(found: dict[str, Any] | None, session: Session) -> None:
    """What the training tried, where it could choose."""
    from toolbox import strengths

    if not found:
        return
    session.table(_("How strongly the repair acts"), strengths.columns(), strengths.rows(found))
    if advice := strengths.advice(found):
        session.say(advice)


def _show(result: dict[str, Any], session: Session) -> None:
    """What was claimed against what was measured, and where the picture lies."""
    from toolbox import repairing

    repair = result["repair"]
    session.table(_("What the repair did, with intervals of 95 %"), repairing.claim_columns(), repairing.claims(repair))
    session.say(repairing.turned(repair))
    if not repair["kept"]:
        session.say(_("✗ The repair did not keep what it promises: see the rows marked ✗."))
    session.say(_("The picture: {path}").format(path=session.home.runs / result["run"] / "plots" / "repair.svg"))
