"""`models trust`: let a model's own program code run, after a person has seen which files and typed the name."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from toolbox.commands import Session
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option

SHOWN = 12
"""Digits of the fingerprint that a person without a terminal gives: 48 bits of what was shown."""


class TrustOptions(msgspec.Struct, kw_only=True):
    """What `models trust` takes."""

    name: Annotated[
        str, option(N_("Model: OWNER/NAME, or a folder"), ask=True, positional=True, choices="models", metavar="NAME")
    ]
    code: Annotated[
        str,
        option(N_("Without a terminal: the fingerprint that was shown, for the typed name"), metavar="HASH"),
    ] = ""
    withdraw: Annotated[bool, option(N_("Take the consent back"))] = False


def trust(options: TrustOptions, session: Session) -> dict[str, Any]:
    """Show which files would run, ask for the repository's name, and note the consent for these very files.

    `--yes` is no consent. Raises InputError where nothing needs it, or none was given.
    """
    from toolbox import own_code

    folder, name = _folder(options.name, session)
    if options.withdraw:
        count = own_code.withdraw(session.home, name)
        session.say(_("Consents taken back for {name}: {count}.").format(name=name, count=count))
        return {"name": name, "withdrawn": count}
    code = _code(folder, name)
    mark = own_code.fingerprint(code)
    rows = [(file, f"{(folder / file).stat().st_size}", sha256) for file, sha256 in code.items()]
    title = _("{name} would run these files, with all your rights").format(name=name)
    session.table(title, (_("File"), _("Bytes"), "SHA-256"), rows)
    call = f"models trust {options.name}"
    session.say(_("They lie in {path}; read them. Fingerprint: {mark}").format(path=folder, mark=mark[:SHOWN]))
    agreed = mark in own_code.consents(session.home)
    if not agreed and not session.dry_run:
        _ask(name, mark, options.code, call, session)
        own_code.agree(session.home, name, code)
        agreed = True
    if agreed:
        session.say(_("These files may run, as long as they stay as they are. To end that: {command}").format(
            command=f"{call} --withdraw"))  # fmt: skip
    return {"name": name, "fingerprint": mark, "files": code, "agreed": agreed}


def _folder(name: str, session: Session) -> tuple[Path, str]:
    """(the model's folder, what is to be typed for it: OWNER/NAME, or the folder's own name)."""
    from toolbox import embedded, models

    if name == embedded.NAME:
        return embedded.MODEL, name
    path = Path(name).expanduser()
    if models.HUB_ID.fullmatch(name) and (session.home.models / name).is_dir():
        return session.home.models / name, name
    if path.is_dir():
        return path.absolute(), path.absolute().name
    raise models.unknown(name, session.home)


def _code(folder: Path, name: str) -> dict[str, str]:
    """The files that would run. Raises InputError where none would, or others than these."""
    from toolbox import model_files, own_code

    config = model_files.json_object(folder / "config.json")
    if other := own_code.from_elsewhere(config):
        raise InputError(
            _("{name} asks for code of another repository, {other}, which can change at any time.").format(
                name=name, other=other
            ),
            _("Copy that code into the folder and name it in config.json without --."),
        )
    code = own_code.of(folder)
    if not code or not config.get("auto_map"):
        raise InputError(_("{name} needs no code of its own.").format(name=name), _("Use it as it is."))
    return code


def _ask(name: str, mark: str, given: str, call: str, session: Session) -> None:
    """Raise InputError unless the person typed the name, or gave the fingerprint that was shown."""
    if given:
        agreed = len(given) >= SHOWN and mark.startswith(given.lower())
    elif not session.interactive:
        agreed = False
    else:
        typed = session.read(_("Type {name} to let them run; Enter: no. ").format(name=name))
        agreed = (typed or "").strip() == name
    if not agreed:
        raise InputError(
            _("Nothing was agreed to, so nothing of {name} will run.").format(name=name),
            _("In a terminal, type the name when asked; elsewhere: {command}").format(
                command=f"{call} --code {mark[:SHOWN]}"
            ),
        )
