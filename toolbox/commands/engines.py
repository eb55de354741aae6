"""`engines list|install|rollback`: the environments that engines and tools need of their own."""

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox.commands import Command, Session, devices
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.interpreters import Interpreter


class ListOptions(msgspec.Struct, kw_only=True):
    """What `engines list` takes: nothing."""


class NameOptions(msgspec.Struct, kw_only=True):
    """What the other actions take."""

    name: Annotated[
        str, option(N_("Engine or tool, as `engines list` shows it"), ask=True, positional=True, metavar="NAME")
    ]


def show(options: ListOptions, session: Session) -> dict[str, Any]:
    """Every environment there can be: installed or not, its version, and whether it can go back to one before."""
    from toolbox import interpreters

    found = [interpreters.find(name, session.home) for name in interpreters.names()]
    session.table(
        _("Engines and tools with an environment of their own"),
        (_("Name"), _("Version"), _("State"), _("Folder")),
        [(each.name, each.pins().get(each.package, "-"), _state(each), str(each.folder)) for each in found],
    )
    return {"engines": [
        {"name": each.name, "version": each.pins().get(each.package), "installed": each.python is not None,
         "stale": each.stale, "pinned": each.pinned, "previous": each.before.is_dir(), "path": str(each.folder)}
        for each in found
    ]}  # fmt: skip


def _state(found: "Interpreter") -> str:
    if found.half_made:
        return _("half made; install it again")
    if found.python is None:
        return _("not installed")
    words = [_("installed")]
    words += [_("pinned")] if found.pinned else [_("older than its lock")] if found.stale else []
    words += [_("can go back to the one before")] if found.before.is_dir() else []
    return ", ".join(words)


def install(options: NameOptions, session: Session) -> dict[str, Any]:
    """Make the environment from its lock, with hashes, or bring it up to its lock; asks first.

    Raises InputError where the disk is too small, Interrupted on Ctrl-C; the environment is whole or as it was then.
    """
    from toolbox import interpreters

    found = interpreters.find(options.name, session.home)
    if found.python and not found.stale and not found.pinned:
        session.say(_("{name} is installed: {path}").format(name=found.name, path=found.folder))
        return {"name": found.name, "path": str(found.folder), "installed": True}
    gpu = _tell(found, session)
    if session.dry_run or not session.confirm(_("Install {name}?").format(name=found.name), default=gpu):
        session.say(_("Nothing was installed."))
        return {"name": found.name, "path": str(found.folder), "installed": False}
    session.home.prepare()
    interpreters.prepare(found)
    session.say(_("{name} is installed: {path}").format(name=found.name, path=found.folder))
    return {"name": found.name, "path": str(found.folder), "installed": True}


def _tell(found: "Interpreter", session: Session) -> bool:
    """What will be installed, where, and what it takes; returns whether there is the GPU that it needs.

    Raises DoesNotFitError where the disk has less than it takes while it is made.
    """
    from toolbox import files, interpreters, units
    from toolbox.errors import DoesNotFitError

    pins = found.pins()
    size = interpreters.INSTALLED_BYTES.get(found.name, 0)
    needed, free = int(size * interpreters.ROOM), files.free_bytes(found.folder)
    room = _("{size}, and {needed} while it is made").format(size=units.size(size), needed=units.size(needed))
    main = [f"{name} {pins[name]}" for name in (found.package, "torch") if name in pins]
    session.table(_("To be installed"), ("", ""), [
        (_("Packages"), _("{main}; {count} in all, each with its hash").format(
            main=", ".join(main) or found.name, count=len(pins))),
        (_("Folder"), str(found.folder)),
        (_("Disk"), room if size else _("not measured")),
        (_("Free"), units.size(free)),
    ])  # fmt: skip
    if free < needed:
        raise DoesNotFitError(
            _("{name} needs {needed}, and {free} are free.").format(
                name=found.name, needed=units.size(needed), free=units.size(free)
            ),
            _("Free some space, or name a folder on another disk with --home DIR."),
        )
    gpu = not any(name.startswith(("nvidia-cu", "triton")) for name in pins) or devices.best(session).kind == "cuda"
    if not gpu:
        session.say(_("There is no NVIDIA GPU here, and {name} does not run without one.").format(name=found.name))
    return gpu


def rollback(options: NameOptions, session: Session) -> dict[str, Any]:
    """Take back the last change of an environment, at once and offline; it then stays so until it is installed anew."""
    from toolbox import interpreters

    found = interpreters.find(options.name, session.home)
    if not session.dry_run:
        interpreters.prepare(found, "--rollback")
    return {"name": found.name, "path": str(found.folder), "rolled_back": not session.dry_run}


COMMANDS = (
    Command("engines list", N_("Engines and tools with an environment of their own"), ListOptions, show),
    Command("engines install", N_("Install one from its lock, or bring it up to it"), NameOptions, install),
    Command("engines rollback", N_("Take back its last change, and keep it so"), NameOptions, rollback),
)
