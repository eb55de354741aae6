"""`config show|set|unset`: the settings, kept in HOME/settings.json."""

from typing import Annotated, Any

import msgspec

from toolbox import options, units
from toolbox.commands import Command, Session
from toolbox.config import Settings
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import Field, option


class ShowOptions(msgspec.Struct, kw_only=True):
    """What `config show` takes: nothing."""


class SetOptions(msgspec.Struct, kw_only=True):
    """What `config set` takes."""

    key: Annotated[str, option(N_("Which setting"), ask=True, positional=True, metavar="KEY")]
    value: Annotated[str, option(N_("What it shall be"), ask=True, positional=True, metavar="VALUE")]


class UnsetOptions(msgspec.Struct, kw_only=True):
    """What `config unset` takes."""

    key: Annotated[str, option(N_("Which setting"), ask=True, positional=True, metavar="KEY")]


def show(given: ShowOptions, session: Session) -> dict[str, Any]:
    """Every setting, and what it is for."""
    settings = msgspec.to_builtins(session.settings)
    session.table(
        str(session.home.path / "settings.json"),
        (_("Setting"), _("Value"), _("What it is")),
        [(field.name, str(settings[field.name]), _(field.help)) for field in options.fields(Settings)],
    )
    return {"home": str(session.home.path), "settings": settings}


def set_(given: SetOptions, session: Session) -> dict[str, Any]:
    """Change one setting. Raises InputError for a value that it can't have."""
    field = _field(given.key)
    if field.name == "limit_rate":
        units.rate(given.value)
    return _save(session, {field.name: field.parse(given.value) if given.value else field.default})


def unset(given: UnsetOptions, session: Session) -> dict[str, Any]:
    """Put one setting back to its default."""
    field = _field(given.key)
    return _save(session, {field.name: field.default})


def _field(key: str) -> Field:
    """The setting of that name, spelt with dashes or underscores. Raises InputError naming all of them."""
    fields = {field.name: field for field in options.fields(Settings)}
    if field := fields.get(key.replace("-", "_")):
        return field
    raise InputError(
        _("There is no setting {key!r}.").format(key=key), _("Settings: {names}.").format(names=", ".join(fields))
    )


def _save(session: Session, changes: dict[str, Any]) -> dict[str, Any]:
    if not session.dry_run:
        session.settings = msgspec.structs.replace(session.settings, **changes)
        session.home.save_settings(session.settings)
    for name, value in changes.items():
        session.say(f"{name} = {value}")
    return {"settings": {**msgspec.to_builtins(session.settings), **changes}}


COMMANDS = (
    Command("config show", N_("Show the settings"), ShowOptions, show),
    Command("config set", N_("Change a setting"), SetOptions, set_),
    Command("config unset", N_("Put a setting back to its default"), UnsetOptions, unset),
)
