"""What `--help` prints: of the whole, of a verb with actions, of one command."""

import shutil
import sys
from collections.abc import Sequence

from toolbox.commands import VERBS, Command, Verb
from toolbox.i18n import _
from toolbox.options import Field, fields
from toolbox.ui.text import cells, pad, wrap

SCRIPT = "bash yichuidingyin.sh"
WIDEST = 30
"""A name longer than this stands on a line of its own."""


def overview(common: Sequence[Field]) -> str:
    """All verbs, and the options that each takes."""
    rows = [(f"{verb.number or '':>2}  {verb.name}", _(verb.summary)) for verb in VERBS]
    return _page(
        _("{script} [VERB …]    without a verb: the menu").format(script=SCRIPT),
        _("One key from a bare machine to a fine-tuned, proven, served model."),
        {_("Verbs, with their numbers in the menu"): rows, _("Options of every verb"): [_row(f) for f in common]},
        _("{script} VERB --help shows a verb's options.").format(script=SCRIPT),
    )


def actions(verb: Verb, commands: Sequence[Command]) -> str:
    """A verb's actions."""
    rows = [(command.name.split()[-1], _(command.summary)) for command in commands]
    usage = _("{script} {verb} ACTION …").format(script=SCRIPT, verb=verb.name)
    more = _("{script} {verb} ACTION --help shows an action's options.").format(script=SCRIPT, verb=verb.name)
    return _page(usage, _(verb.summary), {_("Actions"): rows}, more)


def command(of: Command, common: Sequence[Field]) -> str:
    """A command's options, and those of every verb."""
    own = fields(of.options)
    positional = " ".join(_placeholder(field) for field in own if field.positional)
    groups = {
        _("Words"): [_row(field) for field in own if field.positional],
        _("Options"): [_row(field) for field in own if not field.positional],
        _("Options of every verb"): [_row(field) for field in common],
    }
    usage = " ".join(filter(None, [SCRIPT, of.name, positional, _("[options]")]))
    variable = f"YCDY_{of.name}_OPTION".upper().replace(" ", "_")
    more = _("Each option can be given as an environment variable too: {variable}.").format(variable=variable)
    return _page(usage, _(of.summary), groups, more if own else "")


def _placeholder(field: Field) -> str:
    name = (field.metavar or field.name.upper()) + ("…" if field.many else "")
    return name if field.required else f"[{name}]"


def _row(field: Field) -> tuple[str, str]:
    if field.positional:
        return _placeholder(field), _help(field)
    if field.kind is bool:
        return (f"--[no-]{field.flag[2:]}" if field.default is True else field.flag), _help(field)
    listed = "|".join(filter(None, field.values)) if len(field.values) < 5 else ""
    value = field.metavar or listed or field.name.upper()
    return f"{field.flag} {value}{' …' if field.many else ''}", _help(field)


def _help(field: Field) -> str:
    notes = (
        [_("one of {values}").format(values=", ".join(filter(None, field.values)))] if len(field.values) >= 5 else []
    )
    if field.required:
        notes.append(_("needed"))
    elif field.default is True:
        notes.append(_("default: {value}").format(value=_("yes")))
    elif field.default not in (None, "", [], False):
        shown = ", ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
        notes.append(_("default: {value}").format(value=shown))
    return _(field.help) + (_(" ({notes})").format(notes=_("; ").join(notes)) if notes else "")


def _page(usage: str, summary: str, groups: dict[str, list[tuple[str, str]]], more: str) -> str:
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    lines = [_("Usage: {usage}").format(usage=usage), "", *wrap(summary, width)]
    names = [name for rows in groups.values() for name, _help in rows]
    column = max((cells(name) for name in names if cells(name) <= WIDEST), default=0) + 4
    for title, rows in groups.items():
        if rows:
            lines += ["", _("{title}:").format(title=title)]
            lines += [line for name, help in rows for line in _lines(name, help, column, max(width, column + 20))]
    return "\n".join([*lines, *(["", *wrap(more, width)] if more else [])])


def _lines(name: str, help: str, column: int, width: int) -> list[str]:
    body = wrap(help, width - column)
    if cells(name) > column - 4:
        return [f"  {name}", *(" " * column + line for line in body)]
    return [pad(f"  {name}", column) + body[0], *(" " * column + line for line in body[1:])]
