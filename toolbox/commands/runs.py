"""`runs list|show|tail|diagnose|stop|resume|reproduce|report|compare|remove`: what was started, what to do with it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from toolbox import runs
from toolbox.commands import Command, Session
from toolbox.commands.comparing import CompareOptions, compare
from toolbox.commands.diagnosing import DiagnoseOptions, diagnose
from toolbox.commands.reproducing import ReproduceOptions, reproduce
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.runs import ACTIVE, Run, State, Status

LOOK_EVERY_S = 0.2
PATIENCE_S = 30.0
"""After so long a person is told that `--force` exists."""
STATES: dict[State, str] = {
    "planned": N_("planned"),
    "running": N_("running"),
    "ready": N_("ready"),
    "done": N_("done"),
    "failed": N_("failed"),
    "interrupted": N_("interrupted"),
    "lost": N_("lost"),
}


class ListOptions(msgspec.Struct, kw_only=True):
    """What `runs list` takes."""

    active: Annotated[bool, option(N_("Only runs whose job is alive"))] = False


def _run_option(choices: str) -> msgspec.Meta:
    help = N_("Run: its id, the beginning of it, or last")
    return option(help, ask=True, positional=True, metavar="RUN", choices=choices)


class RunOptions(msgspec.Struct, kw_only=True):
    """What the commands on one run take."""

    run: Annotated[str, _run_option("runs")]


class TailOptions(RunOptions, kw_only=True):
    """What `runs tail` takes."""

    log: Annotated[bool, option(N_("Show the log instead of the progress"), ask=True)] = False


class ResumeOptions(msgspec.Struct, kw_only=True):
    """What `runs resume` takes."""

    run: Annotated[str, _run_option("resumable")]


class StopOptions(msgspec.Struct, kw_only=True):
    """What `runs stop` takes."""

    run: Annotated[str, _run_option("active")]
    force: Annotated[bool, option(N_("End it at once, without saving"))] = False


class RemoveOptions(msgspec.Struct, kw_only=True):
    """What `runs remove` takes."""

    runs: Annotated[
        list[str],
        option(N_("Runs to delete, with all they made"), ask=True, positional=True, metavar="RUN", choices="runs"),
    ]


class ReportOptions(msgspec.Struct, kw_only=True):
    """What `runs report` takes."""

    run: Annotated[str, _run_option("runs")] = "last"
    html: Annotated[bool, option(N_("As one HTML page that loads nothing, beside the Markdown"), ask=True)] = False
    output: Annotated[str, option(N_("Where the HTML page goes; empty: into the run"), metavar="FILE")] = ""


def list_(options: ListOptions, session: Session) -> dict[str, Any]:
    """All runs, newest first."""
    every = [(run, run.status()) for run in runs.every(session.home.runs)]
    found = [(run, status) for run, status in every if status.state in ACTIVE or not options.active]
    if found:
        session.table(
            "",
            (_("Run"), _("State"), _("Kind"), _("Model"), _("Step")),
            [
                (run.id, _(STATES[status.state]), status.stage, status.model_name, _step(facts(run, status)))
                for run, status in found
            ],
        )
    else:
        session.say(_("There are no runs in {path}.").format(path=session.home.runs))
    return {"runs": [facts(run, status) for run, status in found]}


def facts(run: Run, status: Status) -> dict[str, Any]:
    """A run in `runs list --json`; `started_at` in seconds since the epoch, null before the first start."""
    return {
        "id": run.id,
        "state": status.state,
        "stage": status.stage,
        "model": status.model,
        "started_at": status.started_at or None,
        "step": status.step,
        "steps": status.steps,
        "resumable": not why_not_resumable(run, status),
    }


def show(options: RunOptions, session: Session) -> dict[str, Any]:
    """What was planned, where it is, what came of it."""
    from toolbox.report.figures import figures

    run = runs.find(session.home.runs, options.run)
    status = run.status()
    result = run.result()
    rows = [
        (_("State"), _(STATES[status.state])),
        (_("Kind"), status.stage),
        (_("Model"), status.model),
        (_("Started"), _moment(status.started_at)),
        (_("Step"), _step({"step": status.step, "steps": status.steps})),
        (_("Folder"), str(run.path)),
        *figures(_plan(run), result),
    ]
    session.table(run.id, (_("What"), _("Value")), [(name, value) for name, value in rows if value])
    _show_result(result, session)
    if status.error:
        remedy = status.error.get("remedy")
        session.say(f"✗ {status.error.get('message', '')}" + (f"\n  → {remedy}" if remedy else ""))
    if status.state in ("failed", "lost"):
        session.say(_("Why, and what to do: {command}").format(command=run.command("runs", "diagnose")))
    return {**facts(run, status), "path": str(run.path), "plan": _plan(run), "result": result, "error": status.error}


def _show_result(result: dict[str, Any], session: Session) -> None:
    """The tables that merge and evaluate end with."""
    from toolbox.commands import evaluate, merge

    if proof := result.get("proof"):
        merge.show_proof(proof, session)
    if results := result.get("results"):
        evaluate.show_results(results, session)


def tail(options: TailOptions, session: Session) -> dict[str, Any]:
    """Follow a run, from any terminal, until it ends; Ctrl-C ends only the following."""
    run = runs.find(session.home.runs, options.run, Run.alive)
    try:
        if options.log:
            for text in _log(run):
                session.write(text)
        session.watch(run)
    except KeyboardInterrupt:
        session.say(_("{run} goes on.").format(run=run.id))
    return _outcome(run)


def _log(run: Run) -> Iterator[str]:
    """The log as it grows, until the job has ended."""
    with run.log_path.open(encoding="utf-8", errors="replace", newline="") as log:
        while True:
            alive = run.alive()
            while text := log.read(1 << 16):
                yield text
            if not alive:
                return
            time.sleep(LOOK_EVERY_S)


def stop(options: StopOptions, session: Session) -> dict[str, Any]:
    """Ask a run to save and stop, and wait until it has."""
    run = runs.find(session.home.runs, options.run, Run.alive)
    if not run.alive():
        session.say(_("{run} isn't running.").format(run=run.id))
        return _outcome(run)
    asked, begun, told = False, time.monotonic(), False
    session.say(
        _("Ending {run}.").format(run=run.id) if options.force else _("{run} saves and stops.").format(run=run.id)
    )
    while run.alive():
        asked = asked or run.stop(options.force)
        if not told and time.monotonic() - begun > PATIENCE_S:
            told = True
            session.say(
                _("It is still saving. To end it at once: {command}").format(
                    command=run.command("runs", "stop", "--force")
                )
            )
        time.sleep(LOOK_EVERY_S)
    session.say(_("{run} has stopped.").format(run=run.id))
    return _outcome(run)


def resume(options: ResumeOptions, session: Session) -> dict[str, Any]:
    """Go on from the last complete checkpoint, or the last answer of an evaluation."""
    from toolbox.commands import evaluate, finetune

    run = runs.find(session.home.runs, options.run, lambda run: not why_not_resumable(run, run.status()))
    if reason := why_not_resumable(run, run.status()):
        raise InputError(
            _("{run} can't be resumed: {reason}.").format(run=run.id, reason=reason),
            _("Start it anew: {command}").format(command=run.command("runs", "reproduce")),
        )
    if not session.dry_run:
        run.start()
        session.follow(run)
        if run.status().verb == "evaluate":
            evaluate.show_results(run.result()["results"], session)
        else:
            finetune.say_next(run, session)
    return _outcome(run)


def why_not_resumable(run: Run, status: Status) -> str:
    """Why there is nothing to resume; empty where there is."""
    verb = status.verb or _plan(run).get("verb")
    if verb not in ("finetune", "evaluate"):
        return _("only fine-tuning and evaluations can be gone on with")
    if status.state not in ("lost", "failed", "interrupted"):
        return _("it is {state}").format(state=_(STATES[status.state]))
    return "" if verb == "evaluate" or run.has_checkpoint() else _("it ended before its first checkpoint")


def report(options: ReportOptions, session: Session) -> dict[str, Any]:
    """Write the report of a run and its chain again, and show it, or say where its page lies."""
    from toolbox import files
    from toolbox.report import write_page, write_report

    run = runs.find(session.home.runs, options.run)
    if options.html or options.output:
        output = Path(options.output).expanduser().absolute() if options.output else None
        if output and output.is_dir():
            raise files.taken(output)
        page = write_page(run, output)
        session.say(str(page))
        return {"run": run.id, "report": str(run.path / "report.md"), "html": str(page)}
    path = write_report(run)
    session.markdown(path.read_text(encoding="utf-8"))
    session.say(str(path))
    return {"run": run.id, "report": str(path)}


def remove(options: RemoveOptions, session: Session) -> dict[str, Any]:
    """Delete runs with all they made, after asking."""
    from toolbox import files, units

    found = [runs.find(session.home.runs, name) for name in options.runs]
    ids = [run.id for run in found]
    size = units.size(sum(files.size_of(run.path) for run in found))
    question = _("Delete {runs} ({size})?").format(runs=", ".join(ids), size=size)
    if session.dry_run or not session.confirm(question, default=False):
        session.say(_("Nothing was deleted."))
        return {"removed": []}
    for run in found:
        run.remove()
    session.say(_("Deleted {runs}.").format(runs=", ".join(ids)))
    return {"removed": ids}


def _outcome(run: Run) -> dict[str, Any]:
    return {"run": run.id, "state": run.status().state, **run.result()}


def _plan(run: Run) -> dict[str, Any]:
    from toolbox.facts import read_plan

    return read_plan(run)


def _moment(when: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if when else ""


def _step(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['steps']}" if row["steps"] else ""


COMMANDS = (
    Command("runs list", N_("All runs, newest first"), ListOptions, list_),
    Command("runs show", N_("What a run was to do, where it is, what came of it"), RunOptions, show),
    Command("runs tail", N_("Follow a run until it ends"), TailOptions, tail),
    Command("runs diagnose", N_("Why a run failed or is odd, and what to do"), DiagnoseOptions, diagnose),
    Command("runs stop", N_("Ask a run to save and stop"), StopOptions, stop),
    Command("runs resume", N_("Go on from the last checkpoint, or the last answer"), ResumeOptions, resume),
    Command("runs reproduce", N_("Do a report's chain, or a run, again, and compare"), ReproduceOptions, reproduce),
    Command("runs report", N_("Write a run's report again, and show it"), ReportOptions, report),
    Command(
        "runs compare", N_("What differs between runs, and what came of it, with pictures"), CompareOptions, compare
    ),
    Command("runs remove", N_("Delete runs with all they made"), RemoveOptions, remove),
)
