"""What files hold, row by row: rows where a value can be used, faults where not, all in constant memory."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from toolbox.datasets import reading, turns
from toolbox.datasets.formats import SAMPLE, Form, Reader, recognise
from toolbox.datasets.reading import Broken, Source
from toolbox.datasets.rows import Conversation, Labelled, Preference, Prompt, Row, Text
from toolbox.errors import DataError
from toolbox.i18n import _


class Fault(msgspec.Struct, frozen=True):
    """A row that can't be used: its line or place, why, how it begins, and the file."""

    number: int
    reason: str
    text: str
    file: str

    def as_error(self) -> DataError:
        return DataError(
            _("Row {number} of {path} can't be used, {reason}: {text}").format(
                number=self.number, path=self.file, reason=self.reason, text=self.text
            ),
            _("Mend or delete that row, or leave out all such rows with --skip-broken."),
        )


class Contents(msgspec.Struct, frozen=True):
    """Files that were looked through, and the form of their rows; a few shards may make up one data set."""

    sources: tuple[Source, ...]
    form: Form

    @property
    def sha256(self) -> str:
        """The file's hash; of several, the hash of theirs."""
        digests = [source.sha256 for source in self.sources]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def rows(self, as_prompts: bool = False) -> Iterator[Row | Fault]:
        """Every row in its order, or why there is none; `as_prompts`: its question alone, with its other columns."""
        reader = Reader(self.form)
        read = reader.prompt if as_prompts else reader.row
        for source in self.sources:
            for number, value in reading.records(source):
                yield _row(read, source.path, number, value)


def look(paths: Sequence[Path], asked: Mapping[str, str]) -> Contents:
    """Hash the files and tell their form by the first rows; `asked` are columns that were named.

    Raises NotFoundError or InputError where they can't be read, hold no rows, or rows to train on can't be made out.
    """
    sources = tuple(reading.look(path) for path in paths)
    first = list(islice(reading.records(sources[0]), SAMPLE))
    readable = [(number, value) for number, value in first if not isinstance(value, Broken)]
    if not first:
        raise reading.no_rows(paths[0])
    if not readable:
        raise _fault(paths[0], first[0][0], first[0][1]).as_error()
    return Contents(sources, recognise(paths[0], readable, asked))


def chars(row: Row) -> int:
    """Characters of a row's texts; of a preference, those of the longer side with the prompt."""
    match row:
        case Text(text=text):
            return len(text)
        case Conversation(messages=messages) | Labelled(messages=messages) | Prompt(messages=messages):
            return _chars(messages)
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            return _chars(prompt) + max(_chars(chosen), _chars(rejected))


def _chars(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(
        len(message["content"]) + (len(str(message["tool_calls"])) if "tool_calls" in message else 0)
        for message in messages
    )


def _row(read: Callable[[int, Any], Row], path: Path, number: int, value: Any) -> Row | Fault:
    if isinstance(value, Broken):
        return _fault(path, number, value)
    try:
        return read(number, value)
    except turns.Unusable as reason:
        return Fault(number, str(reason), turns.brief(value), str(path))


def _fault(path: Path, number: int, broken: Broken) -> Fault:
    return Fault(number, broken.reason, broken.text, str(path))
