"""`cache list|verify|clean`: all that takes room in HOME, whether it is still whole, and how to be rid of it."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session
from toolbox.holdings import Kind
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.holdings import Holding, Need
    from toolbox.hub.checking import Problem

AnyKind = Literal["", Kind]
ALL_NAMES = N_("Models, data sets, runs, engines, by the names that `cache list` shows; none: all")
ONLY_BY_NAME = ("engine", "other")
"""Kinds that no age and no disuse condemns: their last use is not noted, or they are a person's settings."""


class Filter(msgspec.Struct, kw_only=True):
    """What `cache list` takes: which things are meant."""

    kind: Annotated[AnyKind, option(N_("Only this kind"))] = ""
    older_than: Annotated[str, option(N_("Only what was not used for so long, as 12h, 30d or 4w"), metavar="AGE")] = ""
    unused: Annotated[bool, option(N_("Only downloads that no run needs, and runs that left nothing"))] = False


class VerifyOptions(msgspec.Struct, kw_only=True):
    """What `cache verify` takes."""

    names: Annotated[list[str], option(ALL_NAMES, ask=True, positional=True, metavar="NAME")] = msgspec.field(
        default_factory=list
    )
    kind: Annotated[AnyKind, option(N_("Only this kind"))] = ""


class CleanOptions(Filter, kw_only=True):
    """What `cache clean` takes."""

    names: Annotated[
        list[str],
        option(
            N_("What to delete, by name; nothing named or filtered: cut-off downloads, and caches"),
            ask=True,
            positional=True,
            metavar="NAME",
        ),
    ] = msgspec.field(default_factory=list)


def show(options: Filter, session: Session) -> dict[str, Any]:
    """Everything with its kind, size and last use; what is left over is said once more, with what removes it."""
    from toolbox import holdings, units

    found = _filtered(holdings.every(session.home), options, session)
    title = _("{count} things, {size}, in {path}").format(
        count=len(found), size=units.size(sum(one.bytes for one in found)), path=session.home.path
    )
    session.table(title, _columns(), [_row(one) for one in found])
    if worthless := [one for one in found if one.kind in holdings.WORTHLESS and not one.live]:
        session.say(
            _("Left over: {count}, {size}. `download` resumes what was cut off, `cache clean` removes it.").format(
                count=len(worthless), size=units.size(sum(one.bytes for one in worthless))
            )
        )
    return {"items": [_facts(one) for one in found], "bytes": sum(one.bytes for one in found)}


def verify(options: VerifyOptions, session: Session) -> dict[str, Any]:
    """Hash again whatever a hash was noted of, and look for what can't be loaded; offers to fetch again what is
    damaged.

    Raises CorruptError naming the first damaged file where the offer is not taken.
    """
    from toolbox import holdings
    from toolbox.errors import CorruptError

    results, broken = [], []
    for one in _chosen(options.names, options.kind, holdings.every(session.home)):
        problems = _problems(one, session)
        if problems is None and not options.names:
            continue
        results.append({**_facts(one), "hashed": problems is not None, "problems": msgspec.to_builtins(problems or [])})
        if problems and not _repaired(one, problems, session):
            broken.append((one, problems[0]))
    for one, problem in broken:
        raise CorruptError(_("{file} of {id}: {what}.").format(file=problem.file, id=one.name, what=problem.what),
                           _remedy(one))  # fmt: skip
    return {"items": results}


def _problems(one: "Holding", session: Session) -> "list[Problem] | None":
    """What is wrong, one line a file; noted in a download's manifest, so that nobody uses it until it is mended."""
    from toolbox import holdings
    from toolbox.hub import staging, store

    shown = one.bytes >= staging.SLOW_TO_HASH
    found = holdings.problems(one, session.home, session.transfer(one.name, one.bytes) if shown else lambda size: None)
    manifest = store.read_manifest(one.path) if one.kind in ("model", "dataset") else None
    damaged = [problem.file for problem in found or []]
    if manifest and set(damaged) != set(manifest.damaged):
        with suppress(OSError):  # where nothing may be written, it is told and not noted
            store.write_manifest(one.path, msgspec.structs.replace(manifest, damaged=damaged))
    if found:
        rows = [(problem.file, problem.what) for problem in found]
        session.table(_("{id} is damaged").format(id=one.name), (_("File"), _("What is wrong")), rows)
    elif found is not None:
        session.say(_("{id} is whole.").format(id=one.name))
    elif one.kind in ("model", "dataset", "made"):
        session.say(_("{id} was neither fetched nor made here: its hashes are not known.").format(id=one.name))
    return found


def _repaired(one: "Holding", problems: "list[Problem]", session: Session) -> bool:
    """Fetch the damaged files again from where they came, if the person wants that."""
    from glob import escape

    from toolbox.hub import fetching, store

    manifest = store.read_manifest(one.path)
    if manifest is None or session.dry_run:
        return False
    if not session.confirm(_("Fetch the damaged files of {id} again?").format(id=one.name), default=False):
        return False
    request = fetching.Request(
        id=manifest.id,
        kind=manifest.kind,
        source=manifest.source,
        revision=manifest.revision,
        include=[escape(problem.file) for problem in problems],
        home=session.home,
        settings=session.settings,
        progress=session.transfer,
        say=session.say,
    )
    fetching.fetch(request)
    return True


def clean(options: CleanOptions, session: Session) -> dict[str, Any]:
    """Delete what was named, or filtered, or is left over; asks first, and says which runs would miss it.

    What a live run works with stays. Raises BusyError where that was named.
    """
    from toolbox import holdings, units

    needs = holdings.needs(session.home)
    doomed, kept = _doomed(options, needs, session)
    for one, need in kept:
        session.say(_("{name} stays: {run} needs it.").format(name=one.name, run=need.run.id))
    size = sum(one.bytes for one in doomed)
    removed: list[str] = []
    if not doomed:
        session.say(_("There is nothing to remove."))
    else:
        rows = [(*_row(one)[:-1], ", ".join(need.run.id for need in holdings.needed_by(one, needs))) for one in doomed]
        session.table(_("To be deleted"), (*_columns()[:-1], _("Needed by")), rows)
        question = _("Delete these {count} ({size})? They can't be brought back.")
        if session.dry_run or not session.confirm(
            question.format(count=len(doomed), size=units.size(size)), default=False
        ):
            session.say(_("Nothing was removed; it would have been {size}.").format(size=units.size(size)))
        else:
            removed = [_delete(one) for one in doomed]
            session.say(_("Removed: {count}, {size}.").format(count=len(removed), size=units.size(size)))
    return {
        "removed": removed,
        "bytes": size if removed else 0,
        "kept": [{"name": one.name, "needed_by": need.run.id} for one, need in kept],
    }


def _doomed(
    options: CleanOptions, needs: "Sequence[Need]", session: Session
) -> "tuple[list[Holding], list[tuple[Holding, Need]]]":
    """(what is to go, what a filter meant and a run needs). Raises BusyError for what was named and is in use."""
    from toolbox import holdings

    every = holdings.every(session.home)
    if options.names:
        named = _chosen(options.names, options.kind, every)
        for one in named:
            _refuse_used(one, needs)
        return named, []
    if options == CleanOptions():
        return [one for one in every if one.kind in holdings.WORTHLESS and not one.live], []
    meant = [
        one
        for one in _filtered(every, options, session)
        if not one.live and (one.kind not in ONLY_BY_NAME or options.kind == one.kind)
    ]
    going = {one.path for one in meant}
    missed = [
        (one, missing[0])
        for one in meant
        if (missing := [need for need in holdings.needed_by(one, needs) if need.run.path not in going])
    ]
    kept = {one.path for one, _need in missed}
    return [one for one in meant if one.path not in kept], missed


def _refuse_used(one: "Holding", needs: "Sequence[Need]") -> None:
    from toolbox import holdings
    from toolbox.errors import BusyError

    remedy = _("Wait until that has ended, or end it: runs stop")
    if using := next((need.run.id for need in holdings.needed_by(one, needs) if need.live), ""):
        raise BusyError(_("{name} is in use by {run}.").format(name=one.name, run=using), remedy)
    if one.live:
        raise BusyError(_("{name} is in use.").format(name=one.name), remedy)


def _delete(one: "Holding") -> str:
    import shutil

    from toolbox.hub import store
    from toolbox.runs import Run

    if one.kind == "run":
        Run(one.path).remove()
    elif one.path.is_dir() and one.kind in ("model", "dataset", "partial"):
        with store.locked(store.owner_of(one.path), wait_s=0):
            shutil.rmtree(one.path)
    elif one.path.is_dir() and not one.path.is_symlink():
        shutil.rmtree(one.path)
    else:
        one.path.unlink()
    return str(one.path)


def _filtered(found: "Sequence[Holding]", options: Filter, session: Session) -> "list[Holding]":
    from toolbox import holdings

    before = time.time() - holdings.age(options.older_than)
    needs = holdings.needs(session.home) if options.unused else []
    return [
        one
        for one in found
        if options.kind in ("", one.kind)
        and (not options.older_than or one.last_used < before)
        and (not options.unused or holdings.unused(one, needs))
    ]


def _chosen(names: Sequence[str], kind: str, every: "Sequence[Holding]") -> "list[Holding]":
    """The things of those names, or all. Raises NotFoundError naming what there is."""
    from toolbox.errors import NotFoundError

    meant = [one for one in every if kind in ("", one.kind)]
    known = {one.name for one in meant}
    for name in names:
        if name not in known:
            raise NotFoundError(
                _("There is no {name!r} in the home folder.").format(name=name),
                _("There are: {names}.").format(names=", ".join(sorted(known)[:8]) or _("none yet")),
            )
    return [one for one in meant if not names or one.name in names]


def _remedy(one: "Holding") -> str:
    if one.kind == "run":
        return _("Do it again: {command}").format(command=f"runs reproduce {one.name}")
    if one.kind == "made":
        return _("Delete it and make it again: {command}").format(command=f"cache clean {one.name}")
    if not one.source:
        return _("Copy the folder again from where it came.")
    command = f"download {one.name}" + (" --type dataset" if one.kind == "dataset" else "")
    return _("`{command}` fetches what is damaged again.").format(command=command)


def _columns() -> tuple[str, ...]:
    return _("Name"), _("Kind"), _("Size"), _("Last used"), _("Source")


def _row(one: "Holding") -> tuple[str, ...]:
    from toolbox import holdings, units

    used = _("now") if one.live else time.strftime("%Y-%m-%d %H:%M", time.localtime(one.last_used))
    return one.name, _(holdings.KINDS[one.kind]), units.size(one.bytes), used, one.source


def _facts(one: "Holding") -> dict[str, Any]:
    return {
        "id": one.name,
        "kind": one.kind,
        "path": str(one.path),
        "bytes": one.bytes,
        "source": one.source,
        "last_used": one.last_used,
        "live": one.live,
    }


COMMANDS = (
    Command("cache list", N_("All that takes room: downloads, runs, engines, with size and last use"), Filter, show),
    Command("cache verify", N_("Hash every file again; name what is torn or missing"), VerifyOptions, verify),
    Command("cache clean", N_("Delete what is left over, and what is named or filtered"), CleanOptions, clean),
)
