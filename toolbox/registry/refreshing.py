"""`models refresh`: another table over the shipped one, from a file or an address; checked row by row, kept in HOME."""

import csv
import functools
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from toolbox import files
from toolbox.config import Home
from toolbox.errors import HubError, InputError, NotFoundError
from toolbox.i18n import _
from toolbox.registry.rows import Model, read

LARGEST_BYTES = 8 << 20
"""A table of 50,000 models; more is none."""
MOST_ROWS = 50_000
ANSWER_S = 20.0
NEEDED = {"huggingface", "modelscope", "params_b", "native", "modality"}
"""Columns that a table has to have; the others may be left out."""


class Refreshed(msgspec.Struct, frozen=True):
    """What a table brought. `refused`: rows that can't be, with their line and why."""

    source: str
    sha256: str
    models: int
    new: int
    refused: list[tuple[int, str]]
    path: Path


def table(home: Home) -> Path:
    """Where the refreshed table lies."""
    return home.path / "registry" / "models.csv"


def overlay(home: Home) -> tuple[Model, ...]:
    """The refreshed rows; none where nothing was refreshed, or the file is torn or somebody else's."""
    path = table(home)
    try:
        stat = path.lstat()
        files.refuse_foreign(path)
    except FileNotFoundError:
        return ()
    return _overlay(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _overlay(path: Path, mtime_ns: int, size: int) -> tuple[Model, ...]:
    try:
        return tuple(good(path.read_bytes()))
    except (InputError, OSError):
        return ()


def fetch(source: str) -> bytes:
    """The bytes of a file or an http(s) address, as they are; no header says who asks.

    Raises NotFoundError, InputError for other addresses and too much, HubError where nobody answers.
    """
    if "://" in source:
        return _fetched(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise NotFoundError(_("There is no file {path}.").format(path=path), _("Name a CSV file or an http address."))
    if path.stat().st_size > LARGEST_BYTES:
        raise _too_large(source)
    return path.read_bytes()


def _fetched(address: str) -> bytes:
    import httpx

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise InputError(
            _("{address} is no address to read a table from.").format(address=f"{parts.scheme}://{parts.hostname}"),
            _("Give http:// or https://, without a name or a key in it."),
        )
    content = bytearray()
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=5, timeout=ANSWER_S) as client,
            client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            answer.raise_for_status()
            for piece in answer.iter_raw():
                content += piece
                if len(content) > LARGEST_BYTES:
                    raise _too_large(address)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = getattr(getattr(error, "response", None), "status_code", "") or type(error).__name__
        raise HubError(
            _("{address} failed: {reason}.").format(address=parts.hostname, reason=reason),
            _("Fetch the file yourself, and name it: models refresh FILE"),
        ) from error
    return bytes(content)


def keep(source: str, content: bytes, known: set[str], home: Home) -> Refreshed:
    """Put the rows of a table that can be taken into HOME, all at once; the table that was there is replaced.

    Raises as `check` does.
    """
    told = check(source, content, known, home)
    files.write_text(table(home.prepare()), _written(good(content)))
    return told


def check(source: str, content: bytes, known: set[str], home: Home) -> Refreshed:
    """What a table would bring; `known`: names in lower case that are no news.

    Raises InputError where it is no table, or has no row that can be taken.
    """
    refused = [(line, found.message) for line, found in _rows(content) if isinstance(found, InputError)]
    models = good(content)
    if not models:
        raise InputError(
            _("{source} holds no model that can be taken.").format(source=source),
            refused[0][1] if refused else _("Columns are those of toolbox/registry/models.csv."),
        )
    return Refreshed(
        source=source,
        sha256=hashlib.sha256(content).hexdigest(),
        models=len(models),
        new=sum(not {name.lower() for name in model.names} & known for model in models),
        refused=refused,
        path=table(home),
    )


def good(content: bytes) -> list[Model]:
    """The rows that can be taken."""
    return [found for _line, found in _rows(content) if isinstance(found, Model)]


def _rows(content: bytes) -> Iterator[tuple[int, Model | InputError]]:
    """(line, the model or why it is none). Raises InputError where the whole is no table."""
    try:
        text = content.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if not set(reader.fieldnames or ()) >= NEEDED:
            raise InputError(
                _("This is no table of models: it lacks {columns}.").format(
                    columns=", ".join(sorted(NEEDED - set(reader.fieldnames or ())))
                ),
                _("Columns are those of toolbox/registry/models.csv."),
            )
        for count, row in enumerate(reader, start=1):
            if count > MOST_ROWS:
                raise _too_large("")
            yield reader.line_num, _read(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            _("This is no table of models: {reason}.").format(reason=type(error).__name__),
            _("Give a CSV file in UTF-8."),
        ) from error


def _read(row: dict[str, str]) -> Model | InputError:
    try:
        return read(row)
    except InputError as error:
        return error


def _written(models: list[Model]) -> str:
    """The rows as a table again: what stands in HOME has been read and checked, not copied."""
    text = io.StringIO(newline="")
    columns = Model.__struct_fields__
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for model in models:
        values = {**msgspec.structs.asdict(model), "domain": "|".join(model.domain)}
        values["native"] = "yes" if model.native else "no"
        writer.writerow(values[column] for column in columns)
    return text.getvalue()


def _too_large(source: str) -> InputError:
    return InputError(
        _("{source} is too large for a table of models.").format(source=source),
        _("At most {size} MiB and {rows} rows.").format(size=LARGEST_BYTES >> 20, rows=MOST_ROWS),
    )
