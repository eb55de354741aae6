"""Evaluation suites: the shipped ones and a person's own files, every row checked beforehand (`evaluate --suite`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from toolbox import datasets, embedded, plugins
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import N_, _

METRICS = {
    "perplexity": (N_("perplexity ↓"), False),
    "exact_match": (N_("exact match ↑"), True),
    "likelihood_bias": (N_("gender bias by likelihood ↓"), False),
    "generated_bias": (N_("gender bias in generated text ↓"), False),
}
"""Each metric: its name for people, and whether more of it is better, which its arrow says too."""


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation that was found: what it measures, on the rows of which file."""

    name: str
    kind: str
    """perplexity, exact_match, gender, or the name of a plugin's suite."""
    path: Path
    """Its rows; of a plugin's suite the plugin's own file."""
    metrics: list[str] = []
    """What an answer to a question is measured by, beside exact match."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A row of an exact-match file. Any of `answers` is right; other columns are ignored."""

    question: str
    answers: list[str]
    system: str = ""


class Portrait(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a gender probe: the answer to `prompt` begins with `prefix`, and goes on with `female` or `male`."""

    profession: str
    language: Literal["zh", "en"]
    prompt: str
    prefix: str
    female: str
    male: str
    name: str = ""


Row = TypeVar("Row", Question, Portrait)


def resolve(name: str, home: Home) -> Suite:
    """The suite that a person means: a shipped one by name, or a file, whose columns tell what it measures.

    Raises NotFoundError naming what there is, InputError naming the first row that can't be used.
    """
    if name in embedded.SUITES:
        path = embedded.SUITES[name][1]
    elif Path(name).expanduser().is_file():
        path = Path(name).expanduser().resolve()
        name = str(path)
    elif name in plugins.added("suite"):
        return Suite(name=name, kind=name, path=plugins.file_of("suite", name))
    else:
        known = [*embedded.SUITES, *plugins.added("suite")]
        raise NotFoundError(
            _("There is no suite {name!r}.").format(name=name),
            _("Suites: {names}; or name a JSONL file.").format(names=", ".join(known)),
        )
    suite = Suite(name=name, kind=_kind(path), path=path)
    _check(suite, home)
    return suite


def label(metric: str, greater_is_better: bool = True) -> tuple[str, bool]:
    """(name for people, whether more of it is better); of a plugin's metric as its rows say."""
    return METRICS.get(metric) or (f"{metric} {'↑' if greater_is_better else '↓'}", greater_is_better)


def questions(suite: Suite) -> list[Question]:
    return list(_read(suite.path, Question))


def portraits(suite: Suite) -> list[Portrait]:
    return list(_read(suite.path, Portrait))


def spread(rows: Sequence[Row] | Sequence[datasets.Row], limit: int) -> list:
    """`limit` rows taken evenly from the whole, all where `limit` is 0: the first ones would be of one kind only."""
    if not limit or limit >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


def _kind(path: Path) -> str:
    """By the columns of the first row: `answers` are for exact match, a `prefix` is the gender probe's."""
    columns = next(_lines(path), (0, b"{}"))[1]
    try:
        first = msgspec.json.decode(columns)
    except msgspec.DecodeError:
        first = {}
    found = set(first) if isinstance(first, dict) else set()
    return "exact_match" if "answers" in found else "gender" if "prefix" in found else "perplexity"


def _check(suite: Suite, home: Home) -> None:
    if suite.kind == "perplexity":
        if datasets.resolve(str(suite.path), home).kind == "text":
            raise InputError(
                _("{path} holds plain text, and what is measured are answers.").format(path=suite.path),
                _("Take a file of conversations, or of questions and answers."),
            )
    elif not (questions(suite) if suite.kind == "exact_match" else portraits(suite)):
        raise InputError(_("{path} holds no rows.").format(path=suite.path), _("Put at least one row into it."))


def _read(path: Path, kind: type[Row]) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            yield msgspec.json.decode(line, type=kind)
        except msgspec.MsgspecError as error:
            raise InputError(
                _("Row {number} of {path} can't be used: {reason}.").format(number=number, path=path, reason=error),
                _("A row has the columns {columns}.").format(columns=", ".join(_required(kind))),
            ) from error


def _required(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind) if field.required]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each line that holds something; a byte-order mark is skipped."""
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            yield number, line
