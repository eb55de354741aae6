"""The only thing that listens for clients: key, limits, errors in OpenAI's shape; what passes goes on to the engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from toolbox.serving import protocol
from toolbox.serving.guard import Guard, error_response
from toolbox.serving.limits import Limits
from toolbox.serving.metrics import CONTENT_TYPE, Metrics
from toolbox.serving.protocol import ChatRequest, CompletionRequest, Refused, Sampling

T = TypeVar("T")


class Upstream(Protocol):
    """The engine as the gateway sees it."""

    url: str | None
    """Where it answers; None while it does not."""
    headers: dict[str, str]
    """What every request to it brings: its key."""
    restarts: int


class Served(msgspec.Struct, kw_only=True, frozen=True):
    """The model behind the gateway, alone and with adapters."""

    names: dict[str, str]
    """What clients call each model, and what the engine calls it; the first answers where a request names none."""
    base: str
    """What clients call the model without an adapter, whether it is among them or not."""
    context: int
    """Tokens of prompt and answer together."""
    temperature: float
    """For requests that name none."""
    ignores: frozenset[str] = frozenset()
    created: int = 0


class Gateway:
    """An OpenAI-compatible server's front. `app` is the ASGI application."""

    def __init__(
        self, engine: Upstream, served: Served, key: str, count: Callable[[str], int], limits: Limits | None = None
    ) -> None:
        """`count` tells how many tokens a text has; it is called outside the event loop."""
        self._engine, self._served, self._count = engine, served, count
        self._limits = limits or Limits()
        self.metrics = Metrics()
        timeout = httpx.Timeout(self._limits.answer_s, connect=5.0)
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=self._limits.in_flight)
        self._client = httpx.AsyncClient(trust_env=False, timeout=timeout, limits=pool)
        self.app = Guard(self._starlette(), key, self._limits, self.metrics)

    async def close(self) -> None:
        await self._client.aclose()

    def _starlette(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._tell_metrics),
                *self._routes("/v1"),
                *self._routes(""),
            ],
            exception_handlers={Refused: _refused, 404: _no_such_route, 405: _no_such_route, 500: _broken},
        )

    def _routes(self, prefix: str) -> list[Route]:
        """OpenAI's routes. Without /v1 too, as llama.cpp's server has them: people leave it out of a base URL."""
        return [
            Route(prefix + "/models", self._models),
            Route(prefix + "/models/{id:path}", self._model),
            Route(prefix + "/chat/completions", self._chat, methods=["POST"]),
            Route(prefix + "/completions", self._complete, methods=["POST"]),
        ]

    async def _health(self, request: Request) -> Response:
        up = self._engine.url is not None
        return JSONResponse({"status": "ok" if up else "starting"}, 200 if up else 503)

    async def _tell_metrics(self, request: Request) -> Response:
        text = self.metrics.text(self._engine.url is not None, self._engine.restarts)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    def _card(self, name: str) -> dict[str, Any]:
        served = self._served
        parent = served.base if name != served.base else None
        return {
            "id": name, "object": "model", "created": served.created, "owned_by": "yichuidingyin", "parent": parent,
            "max_model_len": served.context,
        }  # fmt: skip

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._served.names]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._card(self._known(request.path_params["id"])))

    async def _chat(self, request: Request) -> Response:
        return await self._forward(request, ChatRequest)

    async def _complete(self, request: Request) -> Response:
        return await self._forward(request, CompletionRequest)

    def _known(self, name: str) -> str:
        """The model that a request means by `name`. Raises Refused where there is none of that name."""
        names = self._served.names
        if not name:
            return next(iter(names))
        if name not in names:
            here = ", ".join(map(repr, names))
            raise Refused(
                404, f"There is no model {name[:200]!r} here; this server has {here}.", "model_not_found", "model"
            )
        return name

    async def _forward(self, request: Request, kind: type[Sampling]) -> Response:
        """Read, check and bound the request, ask the engine, and give back what it says."""
        asked = protocol.read(await self._body(request), kind, self._served.ignores)
        name = self._known(asked.model)
        asked.max_tokens = await asyncio.to_thread(protocol.fit, asked, self._served.context, self._count)
        asked.model = self._served.names[name]
        if isinstance(asked, ChatRequest):
            asked.max_completion_tokens = None
        if asked.temperature is None:
            asked.temperature = self._served.temperature
        answer = await _unless_gone(request, self._ask(request, asked))
        if asked.stream and answer.status_code == httpx.codes.OK:
            return StreamingResponse(self._events(answer, name), media_type="text/event-stream")
        return await _unless_gone(request, self._whole(answer, name))

    async def _body(self, request: Request) -> bytes:
        """The request's body. Raises Refused where it is too large or too slow."""
        too_large = Refused(413, f"The body is larger than {self._limits.body_bytes} bytes.", "body_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._limits.body_bytes:
                        raise too_large
        except TimeoutError as error:
            raise Refused(408, "The body did not arrive in time.", "request_timeout") from error
        return bytes(body)

    async def _ask(self, request: Request, asked: Sampling) -> httpx.Response:
        """The engine's answer, its body not yet read."""
        if self._engine.url is None:
            raise _engine_down()
        outgoing = self._client.build_request(
            "POST", self._engine.url + asked.route, content=msgspec.json.encode(asked),
            headers=self._engine.headers
            | {"content-type": "application/json", "x-request-id": request.scope["request_id"]},
        )  # fmt: skip
        with _engine_faults():
            async with asyncio.timeout(self._limits.answer_s):
                return await self._client.send(outgoing, stream=True)

    async def _whole(self, answer: httpx.Response, name: str) -> Response:
        """An answer in one piece, under the `name` that clients know."""
        try:
            with _engine_faults():
                async with asyncio.timeout(self._limits.answer_s):
                    body = await answer.aread()
        finally:
            await answer.aclose()
        if answer.status_code != httpx.codes.OK:
            raise _engine_refused(answer.status_code, body)
        return Response(self._renamed(_piece(body), name), media_type="application/json")

    async def _events(self, answer: httpx.Response, name: str) -> AsyncIterator[bytes]:
        """The engine's server-sent events, renamed; `[DONE]` follows a finished answer, an error one that broke off."""
        finished = False
        try:
            with _engine_faults():
                async with asyncio.timeout(self._limits.answer_s):
                    async for data in _server_sent(answer):
                        if data == b"[DONE]":
                            break
                        piece = _piece(data)
                        finished = finished or any(choice.get("finish_reason") for choice in piece["choices"])
                        yield _event(self._renamed(piece, name))
            if not finished:
                raise _engine_down()
            yield _event(b"[DONE]")
        except Refused as error:
            yield _event(msgspec.json.encode(error.body()))
        finally:
            await answer.aclose()

    def _renamed(self, piece: dict[str, Any], name: str) -> bytes:
        """An answer, or a piece of one, under the `name` that clients know; its tokens are counted."""
        self.metrics.usage(piece.get("usage"))
        return msgspec.json.encode(piece | {"model": name})


@contextmanager
def _engine_faults() -> Iterator[None]:
    """What goes wrong between us and the engine, as what clients are told."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Refused(504, "The answer took too long.", "engine_timeout") from error
    except httpx.TransportError as error:
        raise _engine_down() from error


async def _server_sent(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Split at line feeds only: a line separator inside a text is text."""
    rest = b""
    async for chunk in answer.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
    if rest.startswith(b"data:"):
        yield rest.removeprefix(b"data:").strip()


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _piece(data: bytes) -> dict[str, Any]:
    """What an engine sent, or a part of it. Raises Refused where it is an error, or nothing that OpenAI's API knows."""
    try:
        piece = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise _engine_refused(502, data) from error
    if not isinstance(piece, dict) or piece.get("error") or not isinstance(piece.get("choices"), list):
        raise _engine_refused(502, data)
    return piece


def _engine_refused(status: int, body: bytes) -> Refused:
    """What an engine says in its own words (FastAPI's `detail`, OpenAI's `error.message` …), in OpenAI's shape."""
    try:
        said = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = None
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail") or said.get("message")
    if isinstance(said, dict):
        said = said.get("message")
    if 400 <= status < 500:
        return Refused(status, str(said or "The engine refused the request.")[:500], "engine_refused")
    return Refused(503 if status == 503 else 502, "The engine failed on this request.", "engine_error")


def _engine_down() -> Refused:
    return Refused(503, "The engine is starting or being restarted; try again shortly.", "engine_unavailable")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless the client hangs up first: then it is cancelled, so that the engine can stop too."""
    asked = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise Refused(499, "The client hung up.", "client_closed_request")
        return await asked
    finally:
        gone.cancel()
        asked.cancel()
        await asyncio.gather(asked, gone, return_exceptions=True)


async def _broken(request: Request, error: Exception) -> Response:
    return error_response(Refused(500, "The gateway failed on this request.", "internal_error"))


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(cast(Refused, error))


async def _no_such_route(request: Request, error: Exception) -> Response:
    return error_response(Refused(404, "There is no such route here.", "not_found"))
