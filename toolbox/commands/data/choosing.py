"""The data sets that `finetune` and `plan` name: found, read through, fetched where that is agreed to, and told of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolbox.commands import Session, known
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.datasets import DatasetSpec, NotDownloadedError

SHOWN = 10
"""Rows left out that the table lists; the plan lists more of them."""


def resolve(
    names: Sequence[str], pairs: Sequence[str], skip_broken: bool, session: Session, fetch: bool
) -> "list[DatasetSpec]":
    """Every data set, with choices that could be made otherwise and rows that are left out said aloud.

    `fetch`: one that a hub has is downloaded, if the person agrees. Raises what `datasets.resolve` raises.
    """
    from toolbox.datasets import NotDownloadedError, columns
    from toolbox.datasets import resolve as one

    asked = columns.parse(pairs)
    found = []
    for name in names:
        try:
            spec = one(name, session.home, asked, skip_broken)
        except NotDownloadedError as error:
            if not fetch or session.dry_run or not _agreed(error, session):
                raise
            _fetch(error, session)
            spec = one(name, session.home, asked, skip_broken)
        _tell(spec, session)
        found.append(spec)
    return found


def _agreed(missing: "NotDownloadedError", session: Session) -> bool:
    known.warn(missing.id, session, "dataset")
    return session.confirm(_("{name} is not on this machine. Download it now?").format(name=missing.id), default=False)


def _fetch(missing: "NotDownloadedError", session: Session) -> None:
    from toolbox.hub import fetching

    fetching.fetch(
        fetching.Request(
            id=missing.id,
            kind="dataset",
            source=missing.hub or session.settings.source,
            home=session.home,
            settings=session.settings,
            progress=session.transfer,
            say=session.say,
        )
    )


def _tell(spec: "DatasetSpec", session: Session) -> None:
    """Ambiguities, and a table of what is left out and why."""
    for note in spec.notes:
        session.say(f"{spec.name}: {note}")
    if not spec.skipped:
        return
    rows = [(str(fault.number), fault.reason, fault.text) for fault in spec.faults[:SHOWN]]
    if spec.skipped > len(rows):
        rows.append(("…", "", ""))
    title = _("{name}: {kept} rows kept, {skipped} left out").format(
        name=spec.name, kept=spec.usable, skipped=spec.skipped
    )
    session.table(title, (_("Row"), _("Why"), _("How it begins")), rows)
