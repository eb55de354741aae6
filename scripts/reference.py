"""Writes docs/commands from the verbs' options, docs/models, docs/evaluation, the tutorial, figures: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import i18n, options  # noqa: E402
from toolbox.cli import COMMON  # noqa: E402
from toolbox.commands import VERBS, Command, Verb  # noqa: E402
from toolbox.i18n import _  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "commands.md", "en": ROOT / "docs" / "commands.en.md"}
WORDS = {
    "zh": ("每个命令和它的选项", "每个命令还接受：", "。", ("选项", "取值", "默认", "做什么")),
    "en": ("Every verb and its options", "Every verb also takes:", ".", ("option", "takes", "default", "what it does")),
}
"""Title, introduction, full stop and columns: words of these pages only, which the program never says."""


def page(language: str) -> str:
    """The reference in one language, as Markdown."""
    i18n.use(language)
    title, introduction, stop, columns = WORDS[language]
    lines = [f"# {title}", "", "<!-- make docs -->", "", introduction, ""]
    lines += [f"- `{field.flag}` {_(field.help)}" for field in COMMON]
    for verb in VERBS:
        number = f"[{verb.number}] " if verb.number else ""
        lines += ["", f"## {verb.name}", "", number + _(verb.summary) + stop, *_commands(verb, stop, columns)]
    return "\n".join(lines) + "\n"


def _commands(verb: Verb, stop: str, columns: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for command in verb.commands():
        if command.name != verb.name:
            lines += ["", f"### {command.name}", "", _(command.summary) + stop]
        lines += _table(command, columns)
    return lines


def _table(command: Command, columns: tuple[str, ...]) -> list[str]:
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
    header = "| " + " | ".join(columns) + " |"
    return ["", header, "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import evaluation_page
    import figures
    import models_page
    import tutorial

    for made in (sys.modules[__name__], models_page, tutorial, evaluation_page):
        for language, path in made.PAGES.items():
            path.write_text(made.page(language), encoding="utf-8")
            print(path.relative_to(ROOT))
    for path in figures.READMES.values():
        path.write_text(figures.filled(path.read_text(encoding="utf-8")), encoding="utf-8")
