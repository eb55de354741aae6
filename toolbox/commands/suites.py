"""The suites that `evaluate` was asked for, fetched where a hub has them, and the list of all (`--list-suites`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolbox.commands import Session
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.suites import Suite
    from toolbox.suites.catalogue import NotFetchedError


def chosen(words: Sequence[str], session: Session) -> "list[Suite]":
    """What the words mean; a suite that a hub has is downloaded, if the person agrees. Raises as `resolve_all` does."""
    from toolbox import suites
    from toolbox.suites.catalogue import NotFetchedError

    while True:
        try:
            return suites.resolve_all(words, session.home)
        except NotFetchedError as missing:
            if session.dry_run or not missing.entry.huggingface or not _agreed(missing, session):
                raise
            _fetch(missing, session)


def _agreed(missing: "NotFetchedError", session: Session) -> bool:
    return session.confirm(
        _("The suite {name} is not on this machine. Download it now?").format(name=missing.name), default=False
    )


def _fetch(missing: "NotFetchedError", session: Session) -> None:
    from toolbox.errors import NotFoundError
    from toolbox.hub import fetching
    from toolbox.suites import catalogue

    entry = missing.entry
    fetching.fetch(
        fetching.Request(
            id=entry.huggingface,
            also={"modelscope": entry.modelscope} if entry.modelscope else {},
            kind="dataset",
            source=session.settings.source,
            include=entry.include,
            home=session.home,
            settings=session.settings,
            progress=session.transfer,
            say=session.say,
        )
    )
    if not catalogue.is_here(missing.name, session.home):
        raise NotFoundError(
            _("What the hub has as {id} is not laid out as it was.").format(id=entry.huggingface),
            _("Look into {folder}, and name the file with --suite.").format(
                folder=session.home.datasets / entry.huggingface
            ),
        )


def listed(session: Session) -> dict[str, Any]:
    """A table of all suites; the `--json` object: `suites[]{name measures items where}`."""
    from toolbox import embedded, plugins, suites
    from toolbox.suites import catalogue

    found: list[dict[str, Any]] = []
    for name in [*embedded.SUITES, *catalogue.CATALOGUE, *plugins.added("suite")]:
        if name in catalogue.CATALOGUE and not catalogue.is_here(name, session.home):
            entry = catalogue.CATALOGUE[name]
            place = entry.page or f"{entry.huggingface}, {catalogue.where(name, session.home)}"
            found.append({"name": name, "measures": entry.title, "items": 0, "where": place})
            continue
        suite = suites.resolve(name, session.home)
        kind = suites.KINDS.get(suite.kind)
        measures = embedded.SUITES[name][0] if name in embedded.SUITES else kind.title if kind else ""
        found.append({"name": name, "measures": measures, "items": suite.items, "where": str(suite.path)})
    session.table(
        _("Suites; a file or folder of your own can be named too"),
        (_("Suite"), _("What it measures"), _("Items"), _("Where")),
        [(row["name"], _(row["measures"]), str(row["items"] or ""), _where(row["where"])) for row in found],
    )
    return {"suites": found}


def _where(place: str) -> str:
    """A path as its name, since tables are narrow; an address in whole."""
    address, _comma, told = place.partition(", ")
    return f"{address}, {_(told)}" if told else Path(place).name if place.startswith("/") else place
