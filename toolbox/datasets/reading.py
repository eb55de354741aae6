"""Values out of files, one at a time: JSON lists, JSON lines, CSV, Parquet and text, told apart by their bytes."""

import codecs
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import msgspec

from toolbox import files
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _

Layout = Literal["jsonl", "list", "objects", "csv", "parquet", "text"]

CHUNK = 1 << 20
LONGEST_VALUE = 64 << 20
"""Characters after which a value of a JSON list that has not ended is taken for a broken one."""
SHOWN_CHARS = 60
TEXT_SUFFIXES, TABLE_SUFFIXES = (".txt", ".md", ".text"), (".csv", ".tsv")
ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How zip, 7z, RAR, xz and zstd begin; tar says ustar at its 257th byte (POSIX.1-1988)."""
DELIMITERS = ",\t;"
MEMORY_PER_CELL = 16 << 20
"""Characters a CSV cell may have; one that is longer is an open quotation mark."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was looked through once: what is needed to read its values."""

    path: Path
    sha256: str
    layout: Layout
    encoding: Literal["utf-8", "gb18030", ""]
    by_blocks: bool = False
    """Of a text: its documents are parted by blank lines; else each line is one."""


class Broken(msgspec.Struct, frozen=True):
    """In place of a value that can't be read: why, in words that go after its place, and how it begins."""

    reason: str
    text: str


Record = tuple[int, Any]
"""(line or place from 1, value or Broken)"""


def look(path: Path) -> Source:
    """Hash a file and tell how it is to be read, in constant memory.

    Raises NotFoundError where it can't be read, InputError where it holds nothing, or neither UTF-8 nor GBK, or is an
    archive.
    """
    try:
        digest = files.sha256(path)
        with opened(path) as file:
            head = file.read(CHUNK)
        if head[:4] == b"PAR1":
            return Source(path=path, sha256=digest, layout="parquet", encoding="")
        if head.startswith(ARCHIVES) or head[257:262] == b"ustar":
            raise InputError(
                _("{path} is an archive, which is never unpacked here.").format(path=path),
                _("Unpack it yourself, where you can see what it holds, and name the file of rows."),
            )
        encoding = _encoding(path)
    except OSError as error:
        raise NotFoundError(
            _("{path} can't be read: {reason}.").format(path=path, reason=error.strerror or error),
            _("Check the file's path."),
        ) from error
    text = head.decode(encoding, "ignore").removeprefix("\ufeff")
    if not text.strip():
        raise no_rows(path)
    layout = _layout(path, text)
    by_blocks = layout == "text" and _parted_by_blank_lines(path)
    return Source(path=path, sha256=digest, layout=layout, encoding=encoding, by_blocks=by_blocks)


def no_rows(path: Path) -> InputError:
    return InputError(_("{path} holds no rows.").format(path=path), _("Put at least one row into it."))


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is gzip."""
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file


def records(source: Source) -> Iterator[Record]:
    """Every value of the file with its number, in constant memory."""
    match source.layout:
        case "jsonl":
            return _json_lines(source)
        case "list" | "objects":
            return _json_values(source)
        case "csv":
            return _table(source)
        case "parquet":
            return _parquet(source.path)
        case "text":
            return _documents(source)


def shown(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 2 * SHOWN_CHARS].split())
    return line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + "…"


def _encoding(path: Path) -> Literal["utf-8", "gb18030"]:
    """UTF-8, else GBK, read as its superset GB 18030.

    A UTF-8 file with a few torn lines stays UTF-8: those lines are broken rows, not another encoding.
    """
    if _decodes(path, "utf-8") or _torn_lines_are_few(path):
        return "utf-8"
    if _decodes(path, "gb18030"):
        return "gb18030"
    raise InputError(
        _("{path} is neither UTF-8 nor GBK text.").format(path=path), _("Save it as UTF-8, or name the right file.")
    )


def _decodes(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with opened(path) as file:
        try:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _torn_lines_are_few(path: Path) -> bool:
    """Whether of the lines that are not plain ASCII at least nine in ten are UTF-8."""
    good = torn = 0
    with opened(path) as file:
        while line := file.readline(CHUNK):
            if not line.isascii():
                try:
                    line.decode()
                    good += 1
                except UnicodeDecodeError:
                    torn += 1
    return good >= 9 * torn


def _parted_by_blank_lines(path: Path) -> bool:
    between = text = False
    with opened(path) as file:
        for line in file:
            if line.strip() and between:
                return True
            text |= bool(line.strip())
            between = text and not line.strip()
    return False


def _layout(path: Path, head: str) -> Layout:
    """How a file's text is laid out, told by its beginning; the name decides only between table, text and torn JSON."""
    start, first = head.lstrip(), head.lstrip().partition("\n")[0].strip()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if start[0] == "[" and (suffix not in TEXT_SUFFIXES or start[1:].lstrip()[:1] in ("{", "]", "")):
        return "list"
    if start[0] == "{":
        second = start.partition("\n")[2].lstrip()[:1]
        if _is_json(first):
            return "jsonl"
        if suffix not in TEXT_SUFFIXES or first == "{":
            return "objects" if first == "{" or second not in ("{", "") else "jsonl"
    if suffix.lower() in TABLE_SUFFIXES:
        return "csv"
    return "text" if suffix.lower() in TEXT_SUFFIXES else "jsonl"


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _json_lines(source: Source) -> Iterator[Record]:
    decode = msgspec.json.Decoder().decode
    foreign = source.encoding != "utf-8"
    with opened(source.path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.isspace() or not line:
                continue
            try:
                yield number, decode(line.decode(source.encoding) if foreign else line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield number, Broken(_("it is not JSON"), shown(line.decode(source.encoding, "replace")))


def _json_values(source: Source) -> Iterator[Record]:
    """The elements of a JSON list, or objects one after another, however they are broken into lines."""
    with io.TextIOWrapper(opened(source.path), encoding=source.encoding, errors="surrogateescape") as file:
        values = _Values(file)
        while (value := values.next()) is not _END:
            yield values.number, value


_END = object()
_BETWEEN = re.compile(r"[\s,]*")
_NEXT_OBJECT = re.compile(r"\}\s*,?\s*(?=\{)")


class _Values:
    """Reads JSON values out of a text file through a window that holds little more than the value at hand."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self._window = file.read(CHUNK).removeprefix("\ufeff").lstrip()
        self._in_list = self._window.startswith("[")
        self._position = int(self._in_list)
        self._decode = json.JSONDecoder().raw_decode
        self._columns: set[str] = set()
        self.number = 0

    def next(self) -> Any:
        """The next value, Broken, or _END."""
        self.number += 1
        begin = self._skip()
        if begin == len(self._window):
            return Broken(_("the list ends without ]"), "") if self._close() else _END
        if self._in_list and self._window[begin] == "]":
            return _END
        value = self._value()
        if isinstance(value, dict):
            self._columns = set(value)
        return value

    def _close(self) -> bool:
        """Whether the list was still open; asked once."""
        was_open, self._in_list = self._in_list, False
        return was_open

    def _skip(self) -> int:
        """Move to the next value; its position, or the window's length at the end of the file."""
        while True:
            self._position = _BETWEEN.match(self._window, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._window) or not self._more():
                return self._position

    def _more(self) -> bool:
        """Widen the window to about twice what is left of it; whether anything came."""
        rest = self._window[self._position :]
        more = self._file.read(max(CHUNK, len(rest)))
        self._window, self._position = rest + more, 0
        return bool(more)

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._window, self._position)
            except (json.JSONDecodeError, RecursionError):
                if len(self._window) - self._position > LONGEST_VALUE or not self._more():
                    return self._broken()
                continue
            if end == len(self._window) and self._more():  # a number may go on
                continue
            if torn := _torn(self._window[self._position : end]):
                value = Broken(_("it is not UTF-8"), torn)
            self._position = end
            return value

    def _broken(self) -> Broken:
        """What can't be read, up to the next object that looks like a row."""
        text = shown(self._window[self._position : self._position + 2 * SHOWN_CHARS])
        for match in _NEXT_OBJECT.finditer(self._window, self._position):
            try:
                value, _end = self._decode(self._window, match.end())
            except (json.JSONDecodeError, RecursionError):
                continue
            if not self._columns or self._columns & set(value):
                self._position = match.end()
                return Broken(_("it is not JSON"), text)
        self._position = len(self._window)
        while self._more():
            self._position = len(self._window)
        self._in_list = False
        return Broken(_("it is not JSON"), text)


def _torn(text: str) -> str:
    """The beginning of a text that holds bytes which are no characters; empty for one that doesn't."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return shown(text.encode(errors="surrogateescape").decode(errors="replace"))
    return ""


def _table(source: Source) -> Iterator[Record]:
    """The lines of a CSV file as objects: the first names the columns, and every line has as many cells."""
    csv.field_size_limit(MEMORY_PER_CELL)
    with io.TextIOWrapper(opened(source.path), encoding=source.encoding, errors="surrogateescape", newline="") as file:
        first = file.readline().removeprefix("\ufeff")
        delimiter = max(DELIMITERS, key=first.count)
        columns = next(csv.reader([first], delimiter=delimiter))
        reader, number = csv.reader(file, delimiter=delimiter), 2
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield number, Broken(_("a quotation mark is never closed"), "")
            else:
                if cells:
                    yield number, _cells(columns, cells)
            number = reader.line_num + 2


def _cells(columns: list[str], cells: list[str]) -> dict[str, str] | Broken:
    text = ", ".join(cells)
    if torn := _torn(text):
        return Broken(_("it is not UTF-8"), torn)
    if len(cells) != len(columns):
        reason = _("it has {found} cells and the first line {wanted}").format(found=len(cells), wanted=len(columns))
        return Broken(reason, shown(text))
    return dict(zip(columns, cells, strict=True))


def _parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, a few at a time. Raises InputError where it is torn."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            _("{path} is torn: {reason}").format(path=path, reason=shown(str(error))), _("Fetch or make it again.")
        ) from error


def _documents(source: Source) -> Iterator[Record]:
    """The documents of a text file, as objects with a `text`: blocks between blank lines, or lines."""
    block: list[str] = []
    begin = 1
    with opened(source.path) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode(source.encoding).removeprefix("\ufeff").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, Broken(_("it is not UTF-8"), shown(raw.decode(source.encoding, "replace")))
                continue
            if line.strip():
                begin = begin if block else number
                block.append(line)
            if block and not (line.strip() and source.by_blocks):
                yield begin, {"text": "\n".join(block)}
                block = []
    if block:
        yield begin, {"text": "\n".join(block)}
