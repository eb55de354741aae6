"""Rows of a suite's file, in whatever layout data sets may have, checked against what their kind needs."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from toolbox.datasets import reading
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import N_, _

HEAD = 1 << 16
TYPES = {
    "str": N_("a text"), "int": N_("a whole number"), "float": N_("a number"), "bool": N_("true or false"),
    "null": N_("empty"), "array": N_("a list"), "object": N_("an object"),
}  # fmt: skip
"""What JSON's types are called for people."""
CHINESE = {
    "问题": "question", "题目": "question", "题干": "question", "答案": "answer", "正确答案": "answer",
    "选项": "options", "选项A": "A", "选项B": "B", "选项C": "C", "选项D": "D", "选项E": "E", "科目": "subject",
    "学科": "subject", "类别": "category", "文本": "text", "内容": "text", "系统": "system", "解析": "explanation",
}  # fmt: skip
"""What people call the columns of their own files."""
T = TypeVar("T")
_TRAIN = re.compile(r"(?:^|[/_.-])train(?:$|[/_.-])")


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or place from 1, value) of each row: objects of JSON, CSV, TSV, Parquet; lines of text; gzip too.

    Raises NotFoundError, or InputError naming the first row that is torn.
    """
    for number, value in reading.records(reading.look(path)):
        if isinstance(value, reading.Broken):
            raise unusable(path, number, value.reason)
        yield number, _named(value)


def read(path: Path, kind: type[T], rename: dict[str, str] | None = None) -> list[T]:
    """All rows as `kind`, a msgspec Struct; `rename` gives columns the names of its fields.

    Raises InputError naming the first row that can't be used.
    """
    return [row for _number, row in numbered(path, kind, rename)]


def numbered(path: Path, kind: type[T], rename: dict[str, str] | None = None) -> Iterator[tuple[int, T]]:
    """The same with the line or place of each, for those who check more than a row's form."""
    for number, value in records(path):
        row = {(rename or {}).get(key, key): cell for key, cell in value.items()} if isinstance(value, dict) else value
        try:
            yield number, msgspec.convert(row, kind, strict=False)
        except msgspec.ValidationError as error:
            raise unusable(path, number, _reason(str(error)), kind) from error


def first(path: Path) -> dict[str, Any]:
    """The first row where it is an object, else {}. Raises as `records` does."""
    row = next((value for _number, value in records(path)), None)
    return row if isinstance(row, dict) else {}


def files_of(folder: Path, looks_like: Callable[[Path, bytes, dict[str, Any]], bool]) -> list[Path]:
    """The files of a folder, at any depth, that look so, by their paths."""
    found = [path for path in sorted(folder.rglob("*")) if (told := told_of(path)) and looks_like(path, *told)]
    return asked(found, folder)


def asked(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Those of a folder's files that are not a split to train on; all where nothing else is left."""
    return [path for path in paths if not _TRAIN.search(path.relative_to(folder).as_posix())] or list(paths)


def told_of(path: Path) -> tuple[bytes, dict[str, Any]] | None:
    """`beginning` of a file in a folder of anything; None of what holds no rows: a folder, a picture, an archive."""
    if path.name.startswith(".") or not path.is_file():
        return None
    try:
        return beginning(path)
    except (InputError, NotFoundError):
        return None


def unusable(path: Path, number: int, reason: str, kind: Any = None) -> InputError:
    """The error for a row that can't be used."""
    columns = [field.encode_name for field in msgspec.structs.fields(kind) if field.required] if kind else []
    return InputError(
        _("Row {number} of {path} can't be used: {reason}.").format(number=number, path=path, reason=reason),
        _("A row has the columns {columns}.").format(columns=", ".join(columns)) if columns else _("Mend that row."),
    )


def _reason(said: str) -> str:
    """What msgspec says of a row, for people; of another form than these as it is."""
    if lacking := re.fullmatch(r"Object missing required field `(\w+)`(?: - at .*)?", said):
        return _("it lacks the column {name}").format(name=lacking[1])
    if typed := re.fullmatch(r"Expected `(.+?)`, got `(\w+)`(?: - at `(?:\$\.)?(.+)`)?", said):
        wanted, found, name = typed.groups()
        told = {"wanted": _types(wanted), "found": _types(found)}
        if not name:
            return _("it is {found} and has to be {wanted}").format(**told)
        return _("its column {name} is {found} and has to be {wanted}").format(name=name, **told)
    return said.rpartition(" - at ")[0] or said


def _types(names: str) -> str:
    return " / ".join(_(TYPES.get(name, name)) for name in names.split(" | "))


def beginning(path: Path) -> tuple[bytes, dict[str, Any]]:
    """(the first bytes, unpacked; the first row where it is an object, else {}), to tell a kind by."""
    with reading.opened(path) as file:
        head = file.read(HEAD)
    first = next(reading.records(reading.look(path)), (0, None))[1]
    return head, _named(first) if isinstance(first, dict) else {}


def _named(row: Any) -> Any:
    """A row whose columns are called in English, where they were in Chinese, without a byte-order mark or blanks."""
    if not isinstance(row, dict):
        return row
    plain = ((str(name).lstrip("\ufeff").strip(), cell) for name, cell in row.items())
    return {CHINESE.get(name, name): cell for name, cell in plain}


def spread(rows: Sequence[T], limit: int) -> list[T]:
    """`limit` rows taken evenly from the whole, all where `limit` is 0: the first ones would be of one sort only."""
    if not limit or limit >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]
