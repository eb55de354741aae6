"""A client of our own gateway: an answer in pieces, as they come."""

from collections.abc import Iterator
from typing import Any

import msgspec

from toolbox.errors import EngineError, InputError
from toolbox.i18n import _

ANSWER_S, CONNECT_S = 900.0, 5.0


class ContextFullError(InputError):
    """The messages are longer than the model's context."""

    kind = "context_full"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def stream(url: str, key: str, body: dict[str, Any]) -> Iterator[str]:
    """The answer to a chat request's `body`, piece by piece, from the server at `url`.

    Raises ContextFullError where the messages are too long, InputError for another refusal, EngineError where the
    server fails or can't be reached.
    """
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    body = {name: value for name, value in {**body, "stream": True}.items() if value is not None}
    try:
        with (
            httpx.Client(trust_env=False, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S)) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise _failure(answer.status_code, _decoded(answer.read()).error)
            for line in _lines(answer.iter_raw()):
                yield from _texts(line)
    except httpx.TransportError as error:
        raise EngineError(_("The server does not answer."), _("See its log: runs list")) from error


def models(url: str, key: str) -> list[str]:
    """The names that the server at `url` answers to. Raises EngineError where it can't be reached."""
    import httpx

    try:
        with httpx.Client(trust_env=False, timeout=CONNECT_S) as client:
            answer = client.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        return [model.id for model in msgspec.json.decode(answer.content, type=_Models).data]
    except (httpx.TransportError, msgspec.DecodeError) as error:
        raise EngineError(_("The server does not answer."), _("See its log: runs list")) from error


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines as server-sent events have them: cut at line feeds only."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _texts(line: bytes) -> Iterator[str]:
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return
    piece = _decoded(data)
    if piece.error:
        raise _failure(500, piece.error)
    for choice in piece.choices:
        if choice.delta.content:
            yield choice.delta.content


def _decoded(data: bytes) -> _Piece:
    try:
        return msgspec.json.decode(data, type=_Piece)
    except msgspec.DecodeError:
        return _Piece(error=_Error(message=data[:200].decode(errors="replace")))


def _failure(status: int, error: _Error | None) -> InputError | EngineError:
    said = error.message if error else str(status)
    if error and error.code == "context_length_exceeded":
        return ContextFullError(_("This is more than the model can read at once."), _("Say it shorter."))
    if 400 <= status < 500:
        return InputError(_("The server refused: {reason}").format(reason=said))
    return EngineError(_("The server failed: {reason}").format(reason=said), _("See its log: runs list"))
