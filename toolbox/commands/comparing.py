"""`runs compare`: what differs between the plans of runs, and what came of it, as tables and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox.commands import Session
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.comparison import Asked


class CompareOptions(msgspec.Struct, kw_only=True):
    """What `runs compare` takes."""

    runs: Annotated[
        list[str],
        option(N_("Two or more runs: ids, their beginnings, or last"), ask=True, positional=True, metavar="RUN",
               choices="pairs"),
    ]  # fmt: skip
    output: Annotated[str, option(N_("Folder for the comparison and its pictures"), metavar="DIR")] = ""


def compare(options: CompareOptions, session: Session) -> dict[str, Any]:
    """Show what differs, write comparison.md with its pictures, and name them."""
    from toolbox import comparison, runs
    from toolbox.report import compared

    chosen = {run.id: run for run in (runs.find(session.home.runs, name) for name in options.runs)}
    if len(chosen) < 2:
        raise InputError(_("A comparison needs two runs."), _("Name two or more; `runs list` shows what there is."))
    groups = comparison.compare(list(chosen.values()), _paired)
    names = compared.letters(groups)
    if len(groups) > 1:
        session.say(_("Runs of different verbs do different work; each kind is compared by itself."))
    for group in groups:
        for table in (compared.legend(group, names), *compared.tables(group, names)):
            session.table(*table)
    tensorboard = compared.tensorboard(groups)
    result: dict[str, Any] = {"groups": [_plain(group) for group in groups], "tensorboard": tensorboard}
    if tensorboard:
        session.say(_("Their curves in TensorBoard: {command}").format(command=tensorboard))
    if session.dry_run:
        return result
    usual = session.home.path / "comparisons" / "-vs-".join(chosen)[:120]
    folder = Path(options.output) if options.output else usual
    path = compared.write(groups, folder.expanduser().absolute(), tensorboard)
    session.say(_("Tables and pictures: {path}").format(path=path))
    return {**result, "report": str(path), "pictures": [str(file) for file in sorted(path.parent.glob("*.svg"))]}


def _paired(asked: "Sequence[Asked]") -> list[dict[str, Any] | None]:
    """What toolbox/evaluation/pairing.py answers; nothing can be paired where it fails."""
    import os
    import subprocess
    import sys

    from toolbox.runs import job_environ

    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox.evaluation.pairing"],
        input=msgspec.json.encode(asked), capture_output=True, env={**os.environ, **job_environ()}, check=False,
    )  # fmt: skip
    try:
        return list(msgspec.json.decode(done.stdout.rstrip().rpartition(b"\n")[2]))
    except msgspec.DecodeError:
        return [None] * len(asked)


def _plain(group: Any) -> dict[str, Any]:
    """A group for `--json`: runs by their ids, and everything that `values` and `figures` list in their order."""
    return {
        "verb": group.verb,
        "runs": [facts.run.id for facts in group.runs],
        **{name: msgspec.to_builtins(getattr(group, name)) for name in ("planned", "came", "measured")},
    }
