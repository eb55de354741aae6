"""`runs diagnose`: why a run failed or is odd, shown with what proves it, the remedy and its command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox import runs
from toolbox.commands import Session
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.diagnosis import Cause

ENDED_BADLY = ("failed", "lost", "interrupted")
"""`last` is the newest of these, if there is one."""
CERTAINTIES = {"certain": N_("certain"), "likely": N_("likely"), "possible": N_("possible")}


class DiagnoseOptions(msgspec.Struct, kw_only=True):
    """What `runs diagnose` takes."""

    run: Annotated[
        str,
        option(
            N_("Run: its id, the beginning of it, or last; or a log file"),
            ask=True, positional=True, metavar="RUN", choices="runs",
        ),
    ] = "last"  # fmt: skip


def diagnose(options: DiagnoseOptions, session: Session) -> dict[str, Any]:
    """Say why; exit status 0 also where nothing is found, which is said."""
    from toolbox import diagnosis

    log = Path(options.run)
    if log.is_file() and log.name not in ("plan.yaml", "status.json"):
        causes = diagnosis.diagnose_log(log, session.home.path)
        _show(causes, session)
        if not causes:
            session.say(_unknown(log))
        return {"log": str(log), "causes": msgspec.to_builtins(causes)}
    run = runs.find(session.home.runs, options.run, lambda run: run.status().state in ENDED_BADLY)
    causes, state = diagnosis.diagnose(run), run.status().state
    _show(causes, session)
    if not causes:
        session.say(_nothing(run, state))
    return {"run": run.id, "state": state, "causes": msgspec.to_builtins(causes)}


def _show(causes: "list[Cause]", session: Session) -> None:
    for number, cause in enumerate(causes, start=1):
        lines = [f"{number}. {cause.message} ({_(CERTAINTIES[cause.certainty])})"]
        lines += [f"   · {line}" for line in cause.evidence]
        lines += [f"   → {cause.remedy}"] if cause.remedy else []
        lines += [f"     {cause.command}"] if cause.command else []
        session.say("\n".join(lines))


def _nothing(run: Run, state: str) -> str:
    """That nothing was found, and what that means for a run in this state."""
    if state == "done":
        return _("{run} is done, and nothing odd was found.").format(run=run.id)
    if state in runs.ACTIVE:
        return _("{run} runs, and nothing odd was found so far.").format(run=run.id)
    if state == "planned":
        return _("{run} was never started.").format(run=run.id)
    return _unknown(run.log_path)


def _unknown(log: Path) -> str:
    told = _("No known cause was found. Look at the end of {log}; whoever you ask needs it, and env.json.")
    return told.format(log=log)
