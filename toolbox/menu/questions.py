"""A verb's questions, asked from its option fields; and the command line that the answers amount to."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from toolbox.commands import Command
from toolbox.config import Home, called
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.menu.prompts import CATALOGUE, Back, Entry, Prompts, Quit
from toolbox.options import Field, fields

Texts = dict[str, str | list[str]]
"""What was answered, by option, as it would be typed on the command line."""

OTHER = "\0other"
"""The entry for what is in no list; no typed text can be it."""
PATHS = ("models", "catalogue", "datasets", "adapters")
"""Choices among which a file or a folder may be typed."""
NEWEST = ("tuned", "exportable", "adapted")
"""Choices of which the newest, which stands first, is the likeliest wish, whatever was answered last."""
NEW_EACH_TIME = {"output"}
"""Options whose last answer is in the way of the next: nothing is overwritten."""
NO_DEFAULT: tuple[object, ...] = (None, "", [], False)


class Questions:
    """Asks a command's options one after the other."""

    def __init__(self, prompts: Prompts, home: Home, say: Callable[[str], None]) -> None:
        self._prompts = prompts
        self._home = home
        self._say = say
        self._answered: Texts = {}

    def ask(self, command: Command, last: Mapping[str, str]) -> Texts:
        """The answers that differ from the defaults. Raises Back and Quit."""
        texts: Texts = {}
        for field in _in_order(fields(command.options)):
            if field.unless in texts or not _is_called_for(field, texts):
                continue
            self._answered = texts
            if answer := self._field(field, last.get(field.name, "")):
                texts[field.name] = answer
        return texts

    def _field(self, field: Field, last: str) -> str | list[str]:
        """One option's answer; empty for its default. Asked again until it is one that the option takes."""
        while True:
            typed = self._listed(field, last) if self._entries(field, last) else self._typed(field, last)
            try:
                return _checked(field, typed)
            except InputError as error:
                self._say(f"✗ {error.message}\n  → {error.remedy}")

    def _entries(self, field: Field, last: str) -> list[Entry]:
        choices: list[tuple[str, str]] = []
        if field.kind is bool:
            choices = [("yes", ""), ("no", "")]
        elif field.values:
            notes = dict(self._known(field)) if field.choices else {}
            choices = [(value, notes.get(value, "")) for value in field.values]
        elif field.choices:
            choices = self._offered(field, last)
        nothing = (
            _("default")
            if field.values or field.choices in ("sources", "types")
            else _("leave empty")
            if field.many
            else _("none")
        )
        titles = {
            "": nothing, "yes": _("yes"), "no": _("no"),
            OTHER: _("something else: type it"), CATALOGUE: _("the catalogue of models"),
        }  # fmt: skip
        return [
            Entry(
                key=str(number),
                title=titles.get(value, value),
                value=value,
                note=note,
                quiet=value in (OTHER, CATALOGUE),
            )
            for number, (value, note) in enumerate(choices, start=1)
        ]

    def _known(self, field: Field) -> list[tuple[str, str]]:
        from toolbox.menu.choices import offered

        return offered(field.choices, self._home, self._answered)

    def _offered(self, field: Field, last: str) -> list[tuple[str, str]]:
        choices = self._known(field)
        if field.choices == "types":
            return choices
        if last and last not in [value for value, _note in choices]:
            choices.insert(0, (last, _("last answer")))
        offered = [value for value, _note in choices]
        if not field.required and not field.unless and field.default in NO_DEFAULT and "" not in offered:
            choices.append(("", ""))
        return [*choices, (OTHER, _("several: with commas between them") if field.many else "")]

    def _listed(self, field: Field, last: str) -> str:
        entries = self._entries(field, last)
        values = [entry.value for entry in entries]
        default = last or _text(field.default)
        at = values.index(default) if default in values and field.choices not in NEWEST else 0
        free = OTHER in values
        chosen = self._prompts.choose(_question(field), entries, at, _("0 back · q quit"), free=free)
        if chosen == CATALOGUE:
            from toolbox.menu.catalogue import Catalogue

            try:
                return Catalogue(self._prompts, self._home, self._say).pick()
            except Back:
                return self._listed(field, last)
        return self._typed(field, last) if chosen == OTHER else chosen

    def _typed(self, field: Field, last: str) -> str:
        default = last or _text(field.default)
        typed = self._prompts.text(_question(field), default, secret=field.secret, paths=field.choices in PATHS).strip()
        if not field.secret and typed == "q":
            raise Quit
        if not field.secret and typed == "0" and not _takes_zero(field):
            raise Back
        return typed or last


def _is_called_for(field: Field, texts: Mapping[str, object]) -> bool:
    """Whether the option that it depends on was answered so that it has a use."""
    name, _equals, values = field.when.partition("=")
    return not name or texts.get(name) in values.split()


def _in_order(every: Sequence[Field]) -> list[Field]:
    """What is asked, each after the one that it depends on."""
    place = {field.name: index for index, field in enumerate(every)}
    asked = [field for field in every if field.ask]
    return sorted(asked, key=lambda field: (max(place[field.name], place.get(field.unless, 0)), bool(field.unless)))


def _question(field: Field) -> str:
    bounds = f" ({field.takes()})" if field.kind in (int, float) else ""
    return _(field.help) + bounds


def _checked(field: Field, typed: str) -> str | list[str]:
    """`typed` as the option takes it, home folders spelt out. Raises InputError."""
    if not typed and field.required:
        raise InputError(_("An answer is needed: {help}.").format(help=_(field.help)), _("0 goes back."))
    if not typed:
        return ""
    texts = [text.strip() for text in typed.split(",")] if field.many and not Path(typed).exists() else [typed]
    texts = [os.path.expanduser(text) if text.startswith("~") else text for text in texts if text]
    for text in texts:
        field.parse(text)
    return texts if field.many else texts[0]


def _takes_zero(field: Field) -> bool:
    try:
        field.parse("0")
    except InputError:
        return False
    return field.kind in (int, float)


def _text(default: object) -> str:
    """A default as it would be typed."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return "" if default is None else str(default)


def remembered(command: Command, texts: Texts) -> dict[str, str]:
    """What may be offered next time; secrets never."""
    secret = {field.name for field in fields(command.options) if field.secret}
    return {
        name: ",".join(text) if isinstance(text, list) else text
        for name, text in texts.items()
        if name not in secret | NEW_EACH_TIME
    }


def command_line(command: Command, texts: Texts, common: Sequence[str] = ()) -> str:
    """The one line that does the same without the menu; a secret is left to be filled in."""
    words = [*called(), *command.name.split()]
    positional: list[str] = []
    for field in fields(command.options):
        answer = texts.get(field.name) or []
        values = [answer] if isinstance(answer, str) else answer
        if field.secret:
            values = ["…"] if values else []
        if field.positional:
            positional += values
        elif values != [_text(field.default)]:
            words += [word for value in values for word in _flagged(field.flag, value)]
    dash = ["--"] if any(word.startswith("-") for word in positional) else []
    return shlex.join([*words, *common, *dash, *positional])


def _flagged(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
