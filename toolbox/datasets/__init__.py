"""Data sets on this machine: what a file holds, found by looking into it, and its rows (`data`, `finetune`)."""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path

import msgspec

from toolbox.config import Home
from toolbox.datasets import addresses, contents, finding
from toolbox.datasets.contents import Fault
from toolbox.datasets.finding import NotDownloadedError, known
from toolbox.datasets.formats import Format
from toolbox.datasets.reading import no_rows
from toolbox.datasets.rows import STAGES, Conversation, Kind, Labelled, Messages, Preference, Prompt, Row, Text
from toolbox.errors import InputError
from toolbox.i18n import _

__all__ = [
    "STAGES", "Conversation", "DatasetSpec", "Fault", "Kind", "Labelled", "Messages", "NotDownloadedError",
    "Preference", "Prompt", "Row", "Text", "conversations", "counted", "known", "load", "resolve", "stream",
]  # fmt: skip

LISTED = 200
"""Faults that a spec lists; more are only counted."""
SEED = 42
"""Of the choice which rows are taken, where not all are."""


class DatasetSpec(msgspec.Struct, kw_only=True, frozen=True):
    """A data set that was found and read through once: what a plan records of it."""

    name: str
    """As the person names it: `demo-persona`, a file, or an address such as `a.jsonl#500`."""
    path: Path
    more: list[Path] = []
    """Further files, where it lies in several shards."""
    format: Format
    kind: Kind = "sft"
    columns: dict[str, str] = {}
    """The column of each key, as `--columns` takes them."""
    notes: list[str] = []
    """Choices that could have been made otherwise, in sentences."""
    rows: int
    """Rows to train on: the usable ones, or as many of them as the address asks for."""
    usable: int = 0
    skip_broken: bool = False
    skipped: int = 0
    faults: list[Fault] = []
    """Rows that can't be used and are left out, the first 200 of them."""
    sha256: str
    longest_chars: int
    """Characters of the longest row's texts: an upper bound for its tokens before a tokenizer is loaded."""

    @property
    def distinct(self) -> int:
        """Rows that are taken at least once."""
        return min(self.rows, self.usable) if self.usable else self.rows

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that the rows to train on take, about."""
        whole = sum(path.stat().st_size for path in (self.path, *self.more))
        return round(whole * self.rows / self.usable) if self.usable else whole


def resolve(name: str, home: Home, columns: Mapping[str, str] | None = None, skip_broken: bool = False) -> DatasetSpec:
    """The data set that a person means: a shipped one, a file, a named or downloaded one; read through once.

    `columns` names the column of a key where it is not the usual one; `skip_broken` leaves out rows that can't be used,
    instead of raising. Constant memory. Raises NotFoundError naming what there is, InputError naming the first row
    that can't be used.
    """
    address = addresses.parse(name)
    found = finding.find(address, home)
    asked = {**found.columns, **(columns or {})}
    held = contents.look(found.paths, asked)
    usable = skipped = longest = 0
    faults: list[Fault] = []
    for row in held.rows():
        if isinstance(row, Fault):
            if not skip_broken:
                raise row.as_error()
            skipped += 1
            if len(faults) < LISTED:
                faults.append(row)
            continue
        usable += 1
        longest = max(longest, contents.chars(row))
    if not usable:
        raise faults[0].as_error() if faults else no_rows(found.paths[0])
    if address.samples is None and found.samples:
        address = msgspec.structs.replace(address, samples=found.samples)
    return DatasetSpec(
        name=name,
        path=found.paths[0],
        more=found.paths[1:],
        format=held.form.format,
        kind=held.form.kind,
        columns=held.form.columns,
        notes=held.form.notes,
        rows=address.rows(usable),
        usable=usable,
        skip_broken=skip_broken,
        skipped=skipped,
        faults=faults,
        sha256=held.sha256,
        longest_chars=longest,
    )


def load(spec: DatasetSpec) -> list[Row]:
    """The rows of a data set that was resolved before. Raises InputError where the file has changed since."""
    return list(stream(spec))


def conversations(spec: DatasetSpec) -> Iterator[Messages]:
    """The rows as conversations that end with an answer: of a preference the chosen side, of texts none."""
    return (row.messages for row in stream(spec) if not isinstance(row, Text | Prompt))


def stream(spec: DatasetSpec) -> Iterator[Row]:
    """The rows that `load` gives, one at a time, in constant memory.

    The same rows in the same order each time, also where an address takes a part of them, or some of them twice.
    """
    for row, times in counted(spec):
        yield from repeat(row, times)


def counted(spec: DatasetSpec, as_prompts: bool = False) -> Iterator[tuple[Row, int]]:
    """Each row that is taken, once, and how often it is taken; in constant memory.

    `as_prompts`: without its last answer, but with all its other columns. Raises InputError where the file has changed
    since it was resolved.
    """
    held = contents.look([spec.path, *spec.more], spec.columns)
    if held.sha256 != spec.sha256:
        raise InputError(
            _("{path} has changed since the plan was made.").format(path=spec.path),
            _("Make the plan again, or bring the old file back."),
        )
    usable = (row for row in held.rows(as_prompts) if not _is_left_out(row, spec.skip_broken))
    rows: Iterator[Row] = usable  # type: ignore[assignment]
    whole = spec.rows == spec.usable or not spec.usable
    return ((row, 1) for row in rows) if whole else _taken(rows, spec.usable, spec.rows)


def _is_left_out(row: Row | Fault, skip_broken: bool) -> bool:
    if isinstance(row, Fault) and not skip_broken:
        raise row.as_error()
    return isinstance(row, Fault)


def _taken(rows: Iterable[Row], usable: int, wanted: int) -> Iterator[tuple[Row, int]]:
    """`wanted` of `usable` rows in their order, with how often; where more are wanted, all of them as often as that
    goes, and some once more (selection sampling, Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S)."""
    whole, needed = divmod(wanted, usable)
    generator, left = random.Random(SEED), usable
    for row in rows:
        extra = generator.random() * left < needed
        needed, left = needed - extra, left - 1
        if whole + extra:
            yield row, whole + extra
