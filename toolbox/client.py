"""A client of our own gateway, and of servers like it: an answer in pieces, as they come; the models that are there."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from toolbox import access
from toolbox.errors import EngineError, InputError
from toolbox.i18n import _

if TYPE_CHECKING:
    import httpx

ANSWER_S, CONNECT_S = 900.0, 5.0
STARTING_S, AGAIN_S = 60.0, 2.0
"""How long a server that does not answer yet is waited for, and after how long it is asked again."""
BUSY = (408, 409, 429, 500, 502, 503, 504)
"""What may be another answer a moment later."""


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


def models(url: str, key: str, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """The names that the server at `url` answers to; one that is starting is waited for, STARTING_S seconds in all.

    Raises InputError where it takes no such key or lists no models, EngineError where it stays out of reach.
    """
    import httpx

    waited = 0.0
    near = access.is_loopback(urlsplit(url).hostname or "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(trust_env=not near, timeout=CONNECT_S, headers=headers) as client:
        while True:
            try:
                answer = client.get(f"{url}/v1/models")
            except (httpx.TransportError, httpx.InvalidURL) as error:
                reason, wait = str(error) or type(error).__name__, AGAIN_S
                if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
                    break
            else:
                if answer.status_code not in BUSY:
                    return _names(answer, url)
                reason, wait = str(answer.status_code), asked_to_wait(answer, AGAIN_S)
            if waited + wait > STARTING_S:
                break
            sleep(wait)
            waited += wait
    raise EngineError(
        _("The server at {url} does not answer: {reason}.").format(url=url, reason=reason),
        _("Check the address, and that the server has started."),
    )


def _names(answer: "httpx.Response", url: str) -> list[str]:
    if answer.status_code in (401, 403):
        raise refused_key(url)
    try:
        return [model.id for model in msgspec.json.decode(answer.content, type=_Models).data]
    except msgspec.DecodeError as error:
        raise InputError(
            _("The server at {url} lists no models ({status}).").format(url=url, status=answer.status_code),
            _("Check the address: it is what stands before /v1."),
        ) from error


def asked_to_wait(answer: "httpx.Response", otherwise: float) -> float:
    """Seconds that a server asks to wait by `Retry-After`."""
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else otherwise


def refused_key(url: str) -> InputError:
    """What is said of a server that answers 401 or 403."""
    return InputError(
        _("The server at {url} does not take the key, or wants one.").format(url=url),
        _(
            "Give it with --endpoint-key (YCDY_EVALUATE_ENDPOINT_KEY), "
            "or of a judge with --judge-key (YCDY_EVALUATE_JUDGE_KEY)."
        ),
    )


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
