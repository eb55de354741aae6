"""Rows of a suite's file, in whatever layout data sets may have, checked against what their kind needs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from toolbox.datasets import reading
from toolbox.errors import InputError
from toolbox.i18n import _

HEAD = 1 << 16
T = TypeVar("T")


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or place from 1, value) of each row: objects of JSON, CSV, TSV, Parquet; lines of text; gzip too.

    Raises NotFoundError, or InputError naming the first row that is torn.
    """
    for number, value in reading.records(reading.look(path)):
        if isinstance(value, reading.Broken):
            raise unusable(path, number, value.reason)
        yield number, value


def read(path: Path, kind: type[T], rename: dict[str, str] | None = None) -> list[T]:
    """All rows as `kind`, a msgspec Struct; `rename` gives columns the names of its fields.

    Raises InputError naming the first row that can't be used.
    """
    found = []
    for number, value in records(path):
        row = {(rename or {}).get(key, key): cell for key, cell in value.items()} if isinstance(value, dict) else value
        try:
            found.append(msgspec.convert(row, kind, strict=False))
        except msgspec.ValidationError as error:
            raise unusable(path, number, str(error), kind) from error
    return found


def unusable(path: Path, number: int, reason: str, kind: Any = None) -> InputError:
    """The error for a row that can't be used."""
    columns = [field.encode_name for field in msgspec.structs.fields(kind) if field.required] if kind else []
    return InputError(
        _("Row {number} of {path} can't be used: {reason}.").format(number=number, path=path, reason=reason),
        _("A row has the columns {columns}.").format(columns=", ".join(columns)) if columns else _("Mend that row."),
    )


def beginning(path: Path) -> tuple[bytes, dict[str, Any]]:
    """(the first bytes, unpacked; the first row where it is an object, else {}), to tell a kind by."""
    with reading.opened(path) as file:
        head = file.read(HEAD)
    first = next(reading.records(reading.look(path)), (0, None))[1]
    return head, first if isinstance(first, dict) else {}


def spread(rows: Sequence[T], limit: int) -> list[T]:
    """`limit` rows taken evenly from the whole, all where `limit` is 0: the first ones would be of one sort only."""
    if not limit or limit >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]
