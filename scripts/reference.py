"""Writes docs/commands.md and docs/commands.en.md from the verbs' own option fields: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import i18n, options  # noqa: E402
from toolbox.cli import COMMON  # noqa: E402
from toolbox.commands import VERBS, Command, Verb  # noqa: E402
from toolbox.i18n import N_, _  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "commands.md", "en": ROOT / "docs" / "commands.en.md"}
TITLE = N_("Every verb and its options")
COLUMNS = (N_("option"), N_("takes"), N_("default"), N_("what it does"))


def page(language: str) -> str:
    """The reference in one language, as Markdown."""
    i18n.use(language)
    lines = [f"# {_(TITLE)}", "", "<!-- make docs -->", "", _("Every verb also takes:"), ""]
    lines += [f"- `{field.flag}` {_(field.help)}" for field in COMMON]
    for verb in VERBS:
        lines += ["", f"## {verb.name}", "", _number(verb) + _(verb.summary) + _("."), *_commands(verb)]
    return "\n".join(lines) + "\n"


def _number(verb: Verb) -> str:
    return f"[{verb.number}] " if verb.number else ""


def _commands(verb: Verb) -> list[str]:
    lines: list[str] = []
    for command in verb.commands():
        if command.name != verb.name:
            lines += ["", f"### {command.name}", "", _(command.summary) + _(".")]
        lines += _table(command)
    return lines


def _table(command: Command) -> list[str]:
    fields = options.fields(command.options)
    if not fields:
        return []
    rows = [
        (
            f"`{field.metavar or field.name.upper()}`" if field.positional else f"`{field.flag}`",
            field.takes().replace("|", "\\|"),
            "" if field.default in (None, "", [], False) else f"`{field.default}`",
            _(field.help).replace("|", "\\|"),
        )
        for field in fields
    ]
    header = "| " + " | ".join(_(column) for column in COLUMNS) + " |"
    return ["", header, "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]


if __name__ == "__main__":
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8")
        print(path.relative_to(ROOT))
