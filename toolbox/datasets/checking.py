"""What is wrong with a data set (`data check`, `data clean`): rows that can't be used, say nothing, or say it again."""

import functools
import json
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from toolbox.datasets.contents import Contents, Fault
from toolbox.datasets.duplicates import Held, Sketches, letters
from toolbox.datasets.reading import shown
from toolbox.datasets.rows import Messages, Preference, Prompt, Row, Text
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Problem = Literal["unusable", "repeated", "duplicate", "near", "contained", "long"]

PROBLEMS: dict[Problem, str] = {
    "unusable": N_("can't be used"),
    "repeated": N_("say the same in two fields"),
    "duplicate": N_("are the same as an earlier row"),
    "near": N_("are nearly the same as an earlier row"),
    "contained": N_("hold a row of the test set"),
    "long": N_("are longer than the limit"),
}
"""What is looked for, in words that go after a number of rows."""

BATCH = 256
SHORT_QUESTION = 24
"""Letters below which a question alone is no sign that a test row is held: its answer has to be there too."""


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with a row: its place among all values of the files, its line, and what."""

    index: int
    number: int
    problem: Problem
    detail: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for beyond broken rows and exact duplicates."""

    near: bool = True
    against: list[Row] = []
    """A test set's rows, which should not be held in the data."""
    tokenizer: Path | None = None
    """A tokenizer.json; without it lengths are characters."""
    max_length: int | None = None


class Tally(msgspec.Struct, frozen=True):
    """What was gone through. `lengths`: tokens, or characters, of each usable row's texts."""

    values: int
    usable: int
    lengths: "array[int]"
    in_tokens: bool


def examine(held: Contents, wanted: Wanted, tell: Callable[[Finding], None]) -> Tally:
    """Go through all rows once, in constant memory but for a few bytes a row; `tell` hears of each finding.

    Duplicates are told at the end, the rest in the order of the rows.
    """
    looked = _Examination(wanted, tell)
    values = 0
    for batch in _batches(held.rows()):
        rows = []
        for value in batch:
            if isinstance(value, Fault):
                tell(Finding(values, value.number, "unusable", f"{value.reason}: {value.text}"))
            else:
                rows.append((values, value))
            values += 1
        for (index, row), length in zip(
            rows, _lengths([text(row) for _index, row in rows], wanted.tokenizer), strict=True
        ):
            looked.at(index, row, length)
    looked.at_duplicates()
    return Tally(values, len(looked.lengths), looked.lengths, wanted.tokenizer is not None)


class _Examination:
    """The usable rows seen so far, and what is to be said of the next."""

    def __init__(self, wanted: Wanted, tell: Callable[[Finding], None]) -> None:
        self._wanted, self._tell = wanted, tell
        self._sketches = Sketches()
        self._numbers, self._indices = array("Q"), array("Q")
        self._signs = [_sign(row) for row in wanted.against]
        self._tests = Held(self._signs) if self._signs else None
        self.lengths = array("Q")

    def at(self, index: int, row: Row, length: int) -> None:
        said = text(row)
        self._sketches.add(said)
        self._numbers.append(row.number)
        self._indices.append(index)
        self.lengths.append(length)
        if repeated := _repeated(row):
            self._tell(Finding(index, row.number, "repeated", repeated))
        if self._wanted.max_length and length > self._wanted.max_length:
            self._tell(Finding(index, row.number, "long", str(length)))
        for test, share in self._tests.found_in(said) if self._tests else ():
            detail = _("row {number} of the test set ({share:.0%}): {text}").format(
                number=self._wanted.against[test].number, share=share, text=shown(self._signs[test])
            )
            self._tell(Finding(index, row.number, "contained", detail))

    def at_duplicates(self) -> None:
        for found in self._sketches.duplicates(self._wanted.near):
            problem: Problem = "duplicate" if found.similarity == 1.0 else "near"
            detail = _("row {number} ({share:.0%} alike)").format(
                number=self._numbers[found.first], share=found.similarity
            )
            self._tell(Finding(self._indices[found.index], self._numbers[found.index], problem, detail))


def text(row: Row) -> str:
    """All that a row says: the tools that may be called, and a turn a line."""
    if isinstance(row, Text):
        return row.text
    tools = [json.dumps(row.tools, ensure_ascii=False)] if row.tools else []
    turns = (row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else (row.messages,)
    return "\n".join([*tools, *(_said(messages) for messages in turns)])


def as_value(row: Row) -> dict[str, object]:
    """A row as an object for a JSONL file, in the format that every tool of the field reads."""
    value = {name: getattr(row, name) for name in row.__struct_fields__ if name not in ("number", "columns")}
    value |= getattr(row, "columns", {})
    if not value.get("tools", True):
        del value["tools"]
    return value


def _said(messages: Messages) -> str:
    return "\n".join(message["content"] or str(message.get("tool_calls", "")) for message in messages)


def _sign(row: Row) -> str:
    """The text by which a row of a test set is known: its question, with the answer where that is short."""
    if isinstance(row, Text):
        return row.text
    before = row.messages if isinstance(row, Prompt) else row.messages[:-1]
    question = _said([message for message in before if message["role"] == "user"])
    return question if len(letters(question)) >= SHORT_QUESTION else text(row)


def _repeated(row: Row) -> str:
    """Which two fields of a row say the same; empty where none do."""
    if isinstance(row, Preference):
        return _("chosen and rejected") if _said(row.chosen) == _said(row.rejected) else ""
    if isinstance(row, Text | Prompt) or len(row.messages) < 2:
        return ""
    question, answer = (message["content"].strip() for message in row.messages[-2:])
    return _("question and answer") if question == answer and question else ""


def _batches(rows: Iterator[Row | Fault]) -> Iterator[list[Row | Fault]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _lengths(texts: list[str], tokenizer: "Path | None") -> list[int]:
    if tokenizer is None:
        return [len(said) for said in texts]
    return [len(encoded.ids) for encoded in _tokenizer(tokenizer).encode_batch_fast(texts, add_special_tokens=False)]


@functools.cache
def _tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
