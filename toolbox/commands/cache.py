"""`cache list|verify|clean`: what was downloaded, whether it is still whole, and how to be rid of it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox.commands import Command, Session
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.hub.checking import Problem
    from toolbox.hub.store import Copy


class ListOptions(msgspec.Struct, kw_only=True):
    """What `cache list` takes: nothing."""


class NameOptions(msgspec.Struct, kw_only=True):
    """What `cache verify` takes."""

    names: Annotated[
        list[str], option(N_("Models or data sets; none: all"), ask=True, positional=True, metavar="NAME")
    ] = msgspec.field(default_factory=list)


class CleanOptions(msgspec.Struct, kw_only=True):
    """What `cache clean` takes."""

    names: Annotated[
        list[str],
        option(
            N_("Models or data sets to delete; none: only downloads cut off"), ask=True, positional=True, metavar="NAME"
        ),
    ] = msgspec.field(default_factory=list)


def show(options: ListOptions, session: Session) -> dict[str, Any]:
    """Every copy with its size, source and last use, and what downloads that were cut off left behind."""
    from toolbox import files, units
    from toolbox.hub import store

    copies = store.copies(session.home)
    facts = [_facts(copy) for copy in copies]
    session.table(
        _("Downloaded, in {path}").format(path=session.home.path),
        (_("Name"), _("Kind"), _("Size"), _("Source"), _("Last used")),
        [
            (
                fact["id"],
                _(store.KINDS[copy.kind]),
                units.size(fact["bytes"]),
                fact["source"] or _("not known"),
                _day(copy.last_used),
            )
            for fact, copy in zip(facts, copies, strict=True)
        ],
    )
    partial = {str(path): files.size_of(path) for path in store.leftovers(session.home)}
    if partial:
        session.say(
            _("Cut-off downloads: {count}, {size}. `download` resumes them, `cache clean` removes them.").format(
                count=len(partial), size=units.size(sum(partial.values()))
            )
        )
    return {
        "copies": facts,
        "partial": [{"path": path, "bytes": size} for path, size in partial.items()],
        "bytes": sum(fact["bytes"] for fact in facts),
    }


def verify(options: NameOptions, session: Session) -> dict[str, Any]:
    """Hash every file again, and look for what can't be loaded; offers to fetch again what is damaged.

    Raises CorruptError naming the first damaged file where the offer is not taken.
    """
    from toolbox.errors import CorruptError

    results = []
    broken = []
    for copy in _chosen(options.names, session):
        problems = _problems(copy, session)
        results.append({**_facts(copy), "problems": msgspec.to_builtins(problems)})
        if problems and not _repaired(copy, problems, session):
            broken.append((copy, problems[0]))
    for copy, problem in broken:
        raise CorruptError(
            _("{file} of {id}: {what}.").format(file=problem.file, id=copy.id, what=problem.what), _remedy(copy)
        )
    return {"copies": results}


def _problems(copy: "Copy", session: Session) -> "list[Problem]":
    """What is wrong with a copy, one line a file; noted in its manifest, so that nobody uses it until it is mended."""
    from toolbox.hub import store
    from toolbox.hub.checking import changed, torn

    progress = session.transfer(copy.id, copy.manifest.bytes if copy.manifest else 0)
    found = {problem.file: problem for problem in [*torn(copy.path), *changed(copy, progress)]}
    if copy.manifest and set(found) != set(copy.manifest.damaged):
        store.write_manifest(copy.path, msgspec.structs.replace(copy.manifest, damaged=list(found)))
    if found:
        session.table(
            _("{id} is damaged").format(id=copy.id),
            (_("File"), _("What is wrong")),
            [(problem.file, problem.what) for problem in found.values()],
        )
    elif copy.manifest:
        session.say(_("{id}: {files} files are whole.").format(id=copy.id, files=len(copy.manifest.files)))
    else:
        session.say(_("{id} was not fetched by `download`: its hashes are not known.").format(id=copy.id))
    return list(found.values())


def _repaired(copy: "Copy", problems: "list[Problem]", session: Session) -> bool:
    """Fetch the damaged files again from where they came, if the person wants that."""
    from glob import escape

    from toolbox.hub import fetching

    if copy.manifest is None or session.dry_run:
        return False
    if not session.confirm(_("Fetch the damaged files of {id} again?").format(id=copy.id), default=False):
        return False
    request = fetching.Request(
        id=copy.id,
        kind=copy.kind,
        source=copy.manifest.source,
        revision=copy.manifest.revision,
        include=[escape(problem.file) for problem in problems],
        home=session.home,
        settings=session.settings,
        progress=session.transfer,
        say=session.say,
    )
    fetching.fetch(request)
    return True


def clean(options: CleanOptions, session: Session) -> dict[str, Any]:
    """Delete the named copies, and what downloads that were cut off left behind; asks first."""
    from toolbox import files, units
    from toolbox.hub import store

    doomed = [copy.path for copy in _chosen(options.names, session)] if options.names else []
    doomed += store.leftovers(session.home)
    size = sum(files.size_of(path) for path in doomed)
    names = ", ".join(str(path.relative_to(session.home.path)) for path in doomed)
    removed: list[str] = []
    if not doomed:
        session.say(_("There is nothing to remove."))
    elif session.dry_run or not session.confirm(
        _("Delete {names} ({size})?").format(names=names, size=units.size(size)), default=False
    ):
        session.say(
            _("Nothing was removed; it would have been {names} ({size}).").format(names=names, size=units.size(size))
        )
    else:
        removed = _delete(doomed)
        session.say(_("Removed {names} ({size}).").format(names=", ".join(removed), size=units.size(size)))
    return {"removed": removed, "bytes": size if removed else 0}


def _delete(paths: Sequence[Path]) -> list[str]:
    import shutil

    from toolbox.hub import store

    for path in paths:
        with store.locked(store.owner_of(path), wait_s=0):
            shutil.rmtree(path)
    return [str(path) for path in paths]


def _chosen(names: Sequence[str], session: Session) -> "list[Copy]":
    """The copies of those names, or all. Raises NotFoundError naming what there is."""
    from toolbox.errors import NotFoundError
    from toolbox.hub import store

    copies = store.copies(session.home)
    known = {copy.id for copy in copies}
    for name in names:
        if name not in known:
            raise NotFoundError(
                _("{name!r} is not in the cache.").format(name=name),
                _("There are: {names}.").format(names=", ".join(sorted(known)) or _("none yet")),
            )
    return [copy for copy in copies if not names or copy.id in names]


def _remedy(copy: "Copy") -> str:
    if copy.manifest is None:
        return _("Copy the folder again from where it came.")
    command = f"download {copy.id}" + (" --type dataset" if copy.kind == "dataset" else "")
    return _("`{command}` fetches what is damaged again.").format(command=command)


def _facts(copy: "Copy") -> dict[str, Any]:
    from toolbox import files

    manifest = copy.manifest
    return {
        "id": copy.id,
        "kind": copy.kind,
        "path": str(copy.path),
        "bytes": manifest.bytes if manifest else files.size_of(copy.path),
        "source": manifest.source if manifest else "",
        "revision": manifest.revision if manifest else "",
        "last_used": copy.last_used,
    }


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


COMMANDS = (
    Command("cache list", N_("What was downloaded, and how much room it takes"), ListOptions, show),
    Command("cache verify", N_("Hash every file again; name what is torn or missing"), NameOptions, verify),
    Command("cache clean", N_("Delete downloads that were cut off, and what is named"), CleanOptions, clean),
)
