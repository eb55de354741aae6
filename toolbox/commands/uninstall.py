"""`uninstall`: says what goes and what stays, then deletes the environments; data goes only where it is asked for."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.config import Home

What = Literal["environment", "engine", "registry", "service", "data"]
KINDS: dict[What, str] = {
    "environment": N_("environment of this program"),
    "engine": N_("engine or tool"),
    "registry": N_("cache"),
    "service": N_("unit or compose file"),
    "data": N_("runs, models, data sets, settings"),
}
TYPED = N_("yes, delete my data")


class Options(msgspec.Struct, kw_only=True):
    """What `uninstall` takes."""

    data: Annotated[
        bool, option(N_("Delete runs, models, data sets and settings too: the whole data folder; asks for typed words"))
    ] = False


class Part(msgspec.Struct, frozen=True):
    """Something that lies on the disk because of this program."""

    kind: What
    path: Path
    bytes: int


def run(options: Options, session: Session) -> dict[str, Any]:
    """Show what goes and what stays, ask, and delete. Raises BusyError while a run is alive."""
    from toolbox import units

    _refuse_alive(session.home)
    found = list(parts(session.home))
    going = [part for part in found if options.data or part.kind != "data"]
    staying = [part for part in found if part not in going]
    for title, some in ((_("Goes"), going), (_("Stays"), staying)):
        rows = [(_(KINDS[part.kind]), units.size(part.bytes), str(part.path)) for part in some]
        session.table(title, (_("What"), _("Size"), _("Path")), rows or [("-", "-", "-")])
    for name in [part.path.stem for part in going if part.path.suffix == ".service"]:
        session.say(_("If it is enabled, first: {command}").format(command=f"systemctl --user disable --now {name}"))
    shown: dict[str, Any] = {"removed": [], "goes": _plain(going), "stays": _plain(staying)}
    if session.dry_run or not going or not _agreed(options, going, session):
        session.say(_("Nothing was removed."))
        return shown
    # What runs this goes last, and nothing is said or imported any more once it is gone.
    for part in going:
        if part.kind != "environment":
            _delete(part.path)
    session.say(_("Removed. This folder stays, and is yours to delete: {path}").format(path=_root()))
    for part in going:
        if part.kind == "environment":
            _delete(part.path)
    return shown | {"removed": _plain(going)}


def parts(home: "Home") -> Iterator[Part]:
    """All there is of this program: environments with what was kept of them, units, and everything else in HOME."""
    from toolbox import files

    own = [folder for stem in (_root() / ".venv", home.path / "env") for folder in _with_before(stem)]
    shared: set[tuple[int, int]] = set()  # What is kept of before the last change has most files in common.
    for path in own:
        if (path / "locks").is_dir() or (path / "preparing").exists():
            yield Part("environment", path, files.size_of(path, shared))
    inside = sorted(home.path.iterdir()) if home.path.is_dir() else []
    for path in inside:
        if path in own:
            continue
        if path.name == "engines":
            yield from (Part("engine", each, files.size_of(each, shared)) for each in sorted(path.iterdir()))
        elif path.name == "services":
            yield from (Part("service", each, files.size_of(each)) for each in sorted(path.iterdir()))
        else:
            yield Part("registry" if path.name == "registry" else "data", path, files.size_of(path))


def _with_before(path: Path) -> list[Path]:
    """An environment, and what the script keeps beside it; a link is somebody else's."""
    named = [path.with_name(path.name + suffix) for suffix in ("", ".before", ".kept", ".keeping")]
    return [each for each in named if each.is_dir() and not each.is_symlink()]


def _refuse_alive(home: "Home") -> None:
    from toolbox import runs
    from toolbox.errors import BusyError

    if alive := [run.id for run in runs.every(home.runs) if run.alive()]:
        raise BusyError(
            _("Still at work: {runs}.").format(runs=", ".join(alive)),
            _("Stop it first: {command}").format(command=f"runs stop {alive[0]}"),
        )


def _agreed(options: Options, going: list[Part], session: Session) -> bool:
    """`--yes` is enough for what can be installed again; data needs the words typed by a person."""
    from toolbox import units

    if options.data:
        session.say(_("Runs, models and data sets can't be had back. To delete them, type: {words}").format(
            words=_(TYPED)))  # fmt: skip
        return (session.read("> ") or "").strip() == _(TYPED)
    size = units.size(sum(part.bytes for part in going))
    return session.confirm(_("Delete what is listed under 'Goes' ({size})?").format(size=size), default=False)


def _delete(path: Path) -> None:
    """Delete a file or a folder. Our own interpreter's folder may go too: what it still needs is loaded."""
    if path.is_dir() and not path.is_symlink():
        if (path / "bin" / "python").exists():
            (path / "preparing").touch()  # cut off here, it is no environment any more
        shutil.rmtree(path)
    else:
        path.unlink()


def _plain(some: list[Part]) -> list[dict[str, Any]]:
    return [{"kind": part.kind, "path": str(part.path), "bytes": part.bytes} for part in some]


def _root() -> Path:
    from toolbox import environment

    return environment.ROOT


COMMANDS = (Command("uninstall", N_("Say what goes and what stays, then remove this program"), Options, run),)
