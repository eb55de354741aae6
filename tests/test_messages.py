"""The Chinese catalogue: every message of the source is in it, whole, and compiled."""

import ast
import functools
import gettext
import re
import string
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import messages  # noqa: E402

CATALOGUE = messages.read(messages.PO)
SAME_IN_CHINESE = re.compile(r"[\W\d]*|(\{\w+(![rs])?(:[^}]*)?\}|API|GPU|lr|ETA|TensorBoard|[\W\d])*")
"""What needs no Chinese character: placeholders, signs, names."""


@functools.cache
def source() -> list[str]:
    """All that the code says. Not while tests are collected: every worker would read the whole code."""
    return [str(message.id) for message in messages.extracted() if message.id]


def placeholders(text: str) -> set[str]:
    return {f"{name}!{conversion}:{spec}" for _text, name, spec, conversion in string.Formatter().parse(text) if name}


def test_every_message_is_translated() -> None:
    missing = [text for text in source() if not (entry := CATALOGUE.get(text)) or not entry.string or entry.fuzzy]
    assert not missing, "run `make messages` and translate: " + "\n".join(missing)


def test_nothing_is_left_that_nobody_says() -> None:
    assert {str(entry.id) for entry in CATALOGUE if entry.id} <= set(source()), "run `make messages`"


def test_translations_have_the_placeholders_of_the_source() -> None:
    for entry in CATALOGUE:
        if entry.id and entry.string:
            assert placeholders(str(entry.id)) == placeholders(str(entry.string)), entry.id


def test_translations_are_chinese() -> None:
    for entry in CATALOGUE:
        if entry.id and not re.search("[\u4e00-\u9fff]", str(entry.string)):
            assert SAME_IN_CHINESE.fullmatch(str(entry.string)), f"{entry.id!r}: {entry.string!r}"


def test_chinese_sentences_end_in_chinese() -> None:
    for entry in CATALOGUE:
        text = str(entry.string)
        if re.search("[\u4e00-\u9fff]", text):
            assert not re.search("[\u4e00-\u9fff][;!?]|[\u4e00-\u9fff]\\.$", text), text


def test_what_is_compiled_is_what_is_written() -> None:
    with messages.MO.open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for entry in CATALOGUE:
        if entry.id:
            assert compiled.gettext(str(entry.id)) == entry.string


def test_messages_are_constants() -> None:
    """`_(f"…")` and `_(NAME + "…")` are looked up in vain; `_(field.help)`, marked with N_ elsewhere, is fine."""
    made = []
    for path in sorted(messages.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="_" | "N_"), args=[ast.JoinedStr() | ast.BinOp()]):
                    made.append(f"{path.name}:{node.lineno}")
    assert not made


def test_a_language_switch_holds_at_once() -> None:
    from toolbox import i18n

    i18n.use("zh")
    assert i18n._("Interrupted.") == "已中断。"
    i18n.use("en")
    assert i18n._("Interrupted.") == "Interrupted."
