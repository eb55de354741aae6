"""Data sets on this machine: what a file holds, found by looking into it, and its rows as `messages`."""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import embedded
from toolbox.config import Home
from toolbox.datasets.rows import STAGES, Conversation, Kind, Labelled, Preference, Row, Text
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _

Format = Literal["messages", "alpaca"]

QUESTIONS = ("instruction", "prompt", "query", "question")
ANSWERS = ("output", "response", "completion", "answer")
CONVERSATIONS = ("messages", "conversations")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Roles of the OpenAI and the ShareGPT manner, and what they become."""

SUFFIXES = (".jsonl", ".json")
SHOWN_CHARS = 60


__all__ = [
    "STAGES",
    "Conversation",
    "DatasetSpec",
    "Kind",
    "Labelled",
    "Preference",
    "Row",
    "Text",
    "find",
    "known",
    "load",
    "resolve",
]


class DatasetSpec(msgspec.Struct, kw_only=True, frozen=True):
    """A data set that was found and read through once: what a plan records of it."""

    name: str
    """As the person names it: `demo-persona`, or a file."""
    path: Path
    format: Format
    rows: int
    sha256: str
    kind: Kind = "sft"
    longest_chars: int
    """Characters of the longest row's texts: an upper bound for its tokens before a tokenizer is loaded."""


def resolve(name: str, home: Home) -> DatasetSpec:
    """The data set that a person means: an embedded one, a file, or a downloaded one; read through once.

    Raises NotFoundError naming what there is, InputError naming the first row that can't be used.
    """
    path = find(name, home)
    data = _bytes(path)
    format, rows = _rows(path, data)
    return DatasetSpec(
        name=name,
        path=path,
        format=format,
        rows=len(rows),
        sha256=hashlib.sha256(data).hexdigest(),
        longest_chars=max(sum(len(message["content"]) for message in row.messages) for row in rows),
    )


def load(spec: DatasetSpec) -> list[Conversation]:
    """The rows of a data set that was resolved before. Raises InputError where the file has changed since."""
    data = _bytes(spec.path)
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise InputError(
            _("{path} has changed since the plan was made.").format(path=spec.path),
            _("Make the plan again, or bring the old file back."),
        )
    return _rows(spec.path, data)[1]


def find(name: str, home: Home) -> Path:
    """The file that holds the data set `name`. Raises NotFoundError, or InputError where a folder holds several."""
    if name in embedded.DATASETS:
        return Path(embedded.DATASETS[name])
    for path in (Path(name).expanduser(), home.datasets / name):
        if path.is_file():
            return path.resolve()
        if path.is_dir():
            return _only_file(path.resolve())
    names = known(home)
    near = difflib.get_close_matches(name, names, n=1)
    remedy = _("Did you mean {name}?").format(name=near[0]) if near else ""
    raise NotFoundError(
        _("There is no data set {name!r}: neither a file nor a downloaded one.").format(name=name),
        remedy or _("Known: {names}; or name a file, or download one.").format(names=", ".join(names)),
    )


def known(home: Home) -> list[str]:
    """The names of all data sets on this machine, as `resolve` takes them."""
    return [*embedded.DATASETS, *_downloaded(home)]


def _downloaded(home: Home) -> list[str]:
    files = (path for suffix in SUFFIXES for path in home.datasets.rglob(f"*{suffix}"))
    return sorted({str(path.parent.relative_to(home.datasets)) for path in files if path.parent != home.datasets})


def _only_file(folder: Path) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    found = [path for path in found if path.name not in ("dataset_infos.json", "configuration.json")]
    training = [path for path in found if path.stem.lower() == "train"]
    if len(training or found) == 1:
        return (training or found)[0]
    if not found:
        raise InputError(
            _("{folder} holds no JSON or JSONL file.").format(folder=folder),
            _("Convert the data to JSONL, a row a line."),
        )
    names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
    raise InputError(
        _("{folder} holds several files: {names}.").format(folder=folder, names=names), _("Name one of them.")
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            _("{path} can't be read: {reason}.").format(path=path, reason=error.strerror), _("Check the file's path.")
        ) from error


def _rows(path: Path, data: bytes) -> tuple[Format, list[Conversation]]:
    """The format and all rows of a file's bytes, every row checked."""
    text = _text(path, data)
    values = [(1, whole)] if (whole := _only_object(text)) else list(_values(path, text))
    if not values:
        raise InputError(_("{path} holds no rows.").format(path=path), _("Put at least one row into it."))
    format = _format(path, *values[0])
    read = _messages if format == "messages" else _alpaca
    return format, [Conversation(number, _read(path, number, value, read)) for number, value in values]


def _text(path: Path, data: bytes) -> str:
    """The text of a file: UTF-8 with or without a byte-order mark, or GBK (read as its superset GB 18030)."""
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(
        _("{path} is neither UTF-8 nor GBK text.").format(path=path), _("Save it as UTF-8, or name the right file.")
    )


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(number, value) of each row: of a JSON list, or of the lines of a JSONL file, whatever its name."""
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(msgspec.json.decode(text), 1)
        except msgspec.DecodeError:
            raise _broken(path, *_broken_element(text)) from None
        return
    for number, line in enumerate(re.split(r"\r?\n", text), 1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line)
            except msgspec.DecodeError:
                raise _broken(path, number, line) from None


def _only_object(text: str) -> dict[str, Any] | None:
    """The one object that a file is, printed over several lines."""
    if text.lstrip()[:2] not in ("{\n", "{\r"):
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _broken_element(text: str) -> tuple[int, str]:
    """(place, text) of the first element of a JSON list that can't be read."""
    import json

    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 1
    skip = re.compile(r"[\s,]*")
    while True:
        position = skip.match(text, position).end()  # type: ignore[union-attr]
        try:
            position = decoder.raw_decode(text, position)[1]
        except json.JSONDecodeError:
            return number, text[position:]
        number += 1


def _broken(path: Path, number: int, text: str) -> InputError:
    return InputError(
        _("Row {number} of {path} is not JSON: {text}").format(number=number, path=path, text=_shown(text)),
        _("Mend or delete that row."),
    )


def _shown(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 2 * SHOWN_CHARS].split())
    return line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + "…"


def _format(path: Path, number: int, value: Any) -> Format:
    """The format of a file, told by the columns of its first row."""
    columns = set(value) if isinstance(value, dict) else set()
    if columns & set(CONVERSATIONS):
        return "messages"
    if columns & set(QUESTIONS) and columns & set(ANSWERS):
        return "alpaca"
    found = _shown(", ".join(value) if isinstance(value, dict) else msgspec.json.encode(value).decode())
    raise InputError(
        _("Row {number} of {path} has no question and answer; found: {found}.").format(
            number=number, path=path, found=found
        ),
        _("Looked for the columns messages or conversations, or instruction and output."),
    )


class _Unusable(Exception):
    """Why a row can't be used, in words that go after its place."""


def _read(
    path: Path, number: int, value: Any, read: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    try:
        if not isinstance(value, dict):
            raise _Unusable(_("it is not an object with columns"))
        if {"chosen", "rejected"} <= set(value) or isinstance(value.get("label"), bool):
            raise _Unusable(_("it holds preferences (chosen, rejected, label), not one right answer"))
        messages = read(value)
        _check_order(messages)
    except _Unusable as reason:
        text = _shown(msgspec.json.encode(value).decode())
        raise InputError(
            _("Row {number} of {path} can't be used, {reason}: {text}").format(
                number=number, path=path, reason=reason, text=text
            ),
            _("Mend or delete that row."),
        ) from None
    return messages


def _alpaca(value: dict[str, Any]) -> list[dict[str, Any]]:
    """instruction, input, output; and before them system, and history as pairs of question and answer."""
    question, answer = _first(value, QUESTIONS), _first(value, ANSWERS)
    asked = "\n".join(filter(None, [_str(value, question), _str(value, "input")]))
    messages = [{"role": "system", "content": value["system"]}] if _str(value, "system") else []
    for pair in value.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _Unusable(_("its history is not a list of [question, answer]"))
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": _str(value, answer)}]


def _first(value: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in value:
            return name
    raise _Unusable(
        _("it has the columns {found} and none of {wanted}").format(
            found=_shown(", ".join(value)), wanted=", ".join(names)
        )
    )


def _str(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is not None and not isinstance(text, str):
        raise _Unusable(_("its {name} is not a text").format(name=name))
    return text or ""


def _messages(value: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAI's role and content, or ShareGPT's from and value."""
    turns = value[_first(value, CONVERSATIONS)]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unusable(_("its messages are not a list of objects"))
    messages = [{"role": "system", "content": value["system"]}] if _str(value, "system") else []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise _Unusable(_("its role {role!r} is none of {roles}").format(role=role, roles=", ".join(ROLES)))
        messages.append({"role": ROLES[role], "content": _str(turn, "content") or _str(turn, "value")})
    return messages


def _check_order(messages: list[dict[str, Any]]) -> None:
    """A system message or none, then user and assistant in turn, the assistant last, and nothing empty."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise _Unusable(
                _("its roles are out of order: {found} where {expected} belongs").format(
                    found=message["role"], expected=expected
                )
            )
        if not message["content"].strip():
            raise _Unusable(_("its answer is empty") if expected == "assistant" else _("its question is empty"))
    if not turns or turns[-1]["role"] != "assistant":
        raise _Unusable(_("it does not end with an answer"))
