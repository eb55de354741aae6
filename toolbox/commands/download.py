"""`download ID…`: fetch models and data sets from a hub, with every hash checked; a folder is checked where it lies."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, known
from toolbox.i18n import N_, _
from toolbox.options import option


class Options(msgspec.Struct, kw_only=True):
    """What `download` takes."""

    ids: Annotated[
        list[str],
        option(
            N_("Models or data sets, as OWNER/NAME, or folders"),
            ask=True,
            positional=True,
            metavar="ID",
            choices="hub",
        ),
    ]
    type: Annotated[Literal["model", "dataset"], option(N_("What is fetched"), ask=True)] = "model"
    source: Annotated[
        Literal["", "auto", "modelscope", "huggingface"],
        option(N_("Hub to fetch from; auto: the one that answers first"), ask=True),
    ] = ""
    revision: Annotated[str, option(N_("Branch, tag or commit; empty: the newest"))] = ""
    include: Annotated[list[str], option(N_("Only files whose names match, like *.safetensors"), metavar="PATTERN")] = (
        msgspec.field(default_factory=list)
    )
    connections: Annotated[int, option(N_("Connections at once, over all files"), ge=1, le=64)] = 8
    limit_rate: Annotated[
        str, option(N_("Bytes a second over all connections, like 10M or 500K; empty: no limit"), metavar="RATE")
    ] = ""


def run(options: Options, session: Session) -> dict[str, Any]:
    """Fetch each id in turn; the keys of the last stand at the top, those of all under `downloads` where several."""
    from toolbox.hub import names

    for name in options.ids:
        if not _is_folder(name):
            known.warn(name, session, options.type)
            names.repository(name)
    results = [
        _folder(Path(name).expanduser(), session) if _is_folder(name) else _repository(name, options, session)
        for name in options.ids
    ]
    return {**results[-1], **({"downloads": results} if len(results) > 1 else {})}


def _is_folder(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or Path(name) in (Path("."), Path(".."))


def _folder(folder: Path, session: Session) -> dict[str, Any]:
    """A folder is used where it lies; what is torn in it is said now, not when it is loaded."""
    from toolbox import files, units
    from toolbox.errors import CorruptError, NotFoundError
    from toolbox.hub.checking import torn

    if not folder.is_dir():
        raise NotFoundError(
            _("There is no folder {path}.").format(path=folder), _("Give a folder, or OWNER/NAME of a hub.")
        )
    for problem in torn(folder):
        raise CorruptError(
            _("{file} in {path}: {what}.").format(file=problem.file, path=folder, what=problem.what),
            _("Copy the folder again from where it came."),
        )
    count = sum(1 for file in folder.rglob("*") if file.is_file())
    size = files.size_of(folder)
    session.say(
        _("{path}: {files} files, {size}; it is used where it lies.").format(
            path=folder, files=count, size=units.size(size)
        )
    )
    return {
        "id": str(folder), "path": str(folder.absolute()), "source": "local", "revision": "",
        "files": count, "bytes": size, "verified": False,
    }  # fmt: skip


def _repository(name: str, options: Options, session: Session) -> dict[str, Any]:
    from toolbox import units
    from toolbox.hub import fetching, names

    request = fetching.Request(
        id=names.repository(name),
        also=known.ids(names.repository(name), session) if options.type == "model" else {},
        kind=options.type,
        source=options.source or session.settings.source,
        revision=options.revision,
        include=options.include,
        connections=options.connections,
        limit_rate=units.rate(options.limit_rate),
        home=session.home,
        settings=session.settings,
        progress=session.transfer,
        say=session.say,
    )
    if session.dry_run:
        return _preview(fetching.look(request), request, session)
    fetched = fetching.fetch(request)
    session.say(
        _("{id}: {files} files, {size}, from {source}, in {path}.").format(
            id=fetched.id, files=fetched.files, size=units.size(fetched.bytes), source=fetched.source, path=fetched.path
        )
    )
    if fetched.unverified:
        session.say(_("The hub gave no hash for {files}.").format(files=", ".join(fetched.unverified[:5])))
    return {**msgspec.to_builtins(fetched, enc_hook=str), "path": str(fetched.path)}


def _preview(selection: Any, request: Any, session: Session) -> dict[str, Any]:
    """The files and their sizes; nothing is fetched."""
    from toolbox import units

    session.table(
        _("{id} on {source}, revision {revision}").format(
            id=request.id, source=selection.listing.source, revision=selection.listing.revision
        ),
        (_("File"), _("Size")),
        [(entry.path, units.size(entry.size)) for entry in selection.wanted],
    )
    return {
        "id": request.id, "path": str(request.path), "source": selection.listing.source,
        "revision": selection.listing.revision, "files": len(selection.wanted), "bytes": selection.bytes,
        "verified": False, "listing": [{"path": entry.path, "bytes": entry.size} for entry in selection.wanted],
    }  # fmt: skip


COMMANDS = (Command("download", N_("Download a model or a data set"), Options, run),)
