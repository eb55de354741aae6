"""`download ID…`: fetch models and data sets from a hub or a mirror, every hash checked; check folders in place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, differing, known
from toolbox.config import command_line
from toolbox.errors import Interrupted
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.hub.names import Address


class Options(msgspec.Struct, kw_only=True):
    """What `download` takes."""

    ids: Annotated[
        list[str],
        option(
            N_("Models or data sets, as [hf|ms]::OWNER/NAME or the address of their page, or folders"),
            ask=True,
            positional=True,
            metavar="ID",
            choices="hub",
        ),
    ]
    type: Annotated[Literal["model", "dataset"], option(N_("What is fetched"), ask=True)] = "model"
    source: Annotated[
        str,
        option(
            N_("auto (what brings it soonest), modelscope, huggingface, a mirror as hf::URL or ms::URL, or a folder"),
            ask=True,
            choices="sources",
        ),
    ] = ""
    revision: Annotated[str, option(N_("Branch, tag or commit; empty: the newest"))] = ""
    include: Annotated[list[str], option(N_("Only files whose names match, like *.safetensors"), metavar="PATTERN")] = (
        msgspec.field(default_factory=list)
    )
    connections: Annotated[int, option(N_("Connections at once, over all files"), ge=1, le=64)] = 8
    limit_rate: Annotated[
        str,
        option(N_("Bytes a second over all connections, like 10M or 500K; empty: as `config` has it"), metavar="RATE"),
    ] = ""


def run(options: Options, session: Session) -> dict[str, Any]:
    """Fetch each id in turn; the keys of the last stand at the top, those of all under `downloads` where several."""
    from toolbox.hub import names

    addresses = {name: names.address(name) for name in options.ids if not _is_folder(name)}
    for address in addresses.values():
        known.warn(address.id, session, address.kind or options.type)
    results = [
        _repository(addresses[name], options, session) if name in addresses else _folder(name, session)
        for name in options.ids
    ]
    return {**results[-1], **({"downloads": results} if len(results) > 1 else {})}


def _is_folder(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "file://")) or Path(name) in (Path("."), Path(".."))


def _folder(name: str, session: Session) -> dict[str, Any]:
    """A folder is used where it lies; what is torn in it is said now, not when it is loaded."""
    from toolbox import files, units
    from toolbox.errors import CorruptError, NotFoundError
    from toolbox.hub.checking import torn

    folder = Path(name.removeprefix("file://")).expanduser()

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


def _repository(address: "Address", options: Options, session: Session) -> dict[str, Any]:
    """What the address says of hub, kind and revision counts more than the options, which may be for several."""
    from toolbox import units
    from toolbox.hub import fetching

    kind = address.kind or options.type
    request = fetching.Request(
        id=address.id,
        also=known.ids(address.id, session) if kind == "model" else {},
        kind=kind,
        source=address.source or options.source or session.settings.source,
        revision=address.revision or options.revision,
        include=options.include,
        connections=options.connections,
        limit_rate=options.limit_rate,
        home=session.home,
        settings=session.settings,
        progress=session.transfer,
        say=session.say,
    )
    if session.dry_run:
        return _preview(fetching.look(request), request, session)
    try:
        fetched = fetching.fetch(request)
    except KeyboardInterrupt as stopped:
        raise Interrupted(
            _("Interrupted. What has come stays."), _("Start the same download again: it goes on from there.")
        ) from stopped
    session.say(
        _("{id}: {files} files, {size}, from {source}, in {path}.").format(
            id=fetched.id, files=fetched.files, size=units.size(fetched.bytes), source=fetched.source, path=fetched.path
        )
    )
    if kind == "model":
        differing.show(fetched.path, [], session)
    if fetched.unverified:
        session.say(_("The hub gave no hash for {files}.").format(files=", ".join(fetched.unverified[:5])))
    if kind == "model" and not options.include:
        session.say(_("Next: {command}").format(command=command_line(session.home.path, "chat", "--model", fetched.id)))
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
