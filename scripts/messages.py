"""Brings the Chinese catalogue up to date with the source and compiles it: `make messages`.

python scripts/messages.py [MORE.po …]     translations in MORE.po fill what the catalogue lacks
"""

import ast
import sys
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toolbox"
PO = PACKAGE / "locale" / "zh" / "LC_MESSAGES" / "toolbox.po"
MO = PO.with_suffix(".mo")
BEGUN = datetime(2026, 11, 21, tzinfo=UTC)
"""The header's dates: fixed, so that the files change only where messages do."""


def extracted() -> Catalog:
    """Every `_("…")` and `N_("…")` of the package, with the files that say it.

    Read from the syntax tree: Babel's own extractor sees none inside an f-string.
    """
    catalog = Catalog()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="_" | "N_"), args=[ast.Constant(value=str(message))]) if message:
                    # Without line numbers: the catalogue changes only where messages do.
                    catalog.add(message, locations=[(path.relative_to(ROOT).as_posix(), 0)])
    return catalog


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale="zh", domain="toolbox")


def updated(more: list[Path]) -> Catalog:
    """The catalogue of today's messages: translated as before, else as in `more`, later files first."""
    catalog = Catalog(
        locale="zh", domain="toolbox", project="yichuidingyin", fuzzy=False, header_comment="# 一锤定音的中文消息。",
        creation_date=BEGUN, revision_date=BEGUN,
    )  # fmt: skip
    known = [read(path) for path in [*([PO] if PO.exists() else []), *reversed(more)]]
    for message in extracted():
        if not message.id:
            continue
        found = (old.get(message.id) for old in known)
        text = next((old.string for old in found if old and old.string and not old.fuzzy), "")
        catalog.add(message.id, text, locations=sorted(set(message.locations)))
    return catalog


def main(more: list[Path]) -> int:
    catalog = updated(more)
    PO.parent.mkdir(parents=True, exist_ok=True)
    with PO.open("wb") as file:
        write_po(file, catalog, sort_output=True, width=120, include_lineno=False)
    with MO.open("wb") as file:
        write_mo(file, catalog)
    missing = [str(message.id) for message in catalog if message.id and not message.string]
    for text in missing:
        print(f"missing: {text}")
    print(f"{len(catalog)} messages, {len(missing)} without a translation")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
