"""The only thing that listens for clients: routes, and what may pass on each of them; relay.py does the asking."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from toolbox.limits import Limits
from toolbox.serving import protocol
from toolbox.serving.accounts import Accounts
from toolbox.serving.guard import GONE, Guard, error_response, stopping
from toolbox.serving.log import log
from toolbox.serving.metrics import CONTENT_TYPE, Metrics
from toolbox.serving.protocol import Asked, ChatRequest, CompletionRequest, EmbeddingRequest, Sampling
from toolbox.serving.refused import Refused
from toolbox.serving.relay import Relay, Upstream

LOOK_EVERY_S = 0.05


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
    features: frozenset[str] = frozenset()
    """Of the engine: `engines.FEATURES`."""
    ignores: frozenset[str] = frozenset()
    created: int = 0


class Gateway:
    """An OpenAI-compatible server's front. `app` is the ASGI application."""

    def __init__(
        self, engine: Upstream, served: Served, accounts: Accounts, count: Callable[[str], int],
        limits: Limits, *, log_contents: bool = False,
    ) -> None:  # fmt: skip
        """`count` tells how many tokens a text has; it is called outside the event loop."""
        self._engine, self._served, self._count, self._limits = engine, served, count, limits
        self._log_contents = log_contents
        self._under_way: set[Relay] = set()
        self._reading_bytes = 0
        self.metrics = Metrics()
        self.app = Guard(self._starlette(), accounts, limits, self.metrics)

    async def drain(self) -> None:
        """Take nothing new, and wait for what is under way: as long as the limits say, then its clients are told."""
        self.app.draining = True
        log("stopping", in_flight=self.metrics.in_flight)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.drain_s
        while self._under_way and loop.time() < deadline:
            await asyncio.sleep(LOOK_EVERY_S)
        for relay in self._under_way:
            relay.end(stopping())

    def _starlette(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._tell_metrics),
                *self._routes("/v1"),
                *self._routes(""),
            ],
            exception_handlers={Refused: _refused, 404: _no_such_route, 405: _no_such_method, 500: _broken},
        )
        app.router.redirect_slashes = False  # its redirect has no body, and leads where the Host header says
        return app

    def _routes(self, prefix: str) -> list[Route]:
        """OpenAI's routes. Without /v1 too, as llama.cpp's server has them: people leave it out of a base URL."""
        return [
            Route(prefix + "/models", self._models),
            Route(prefix + "/models/{id:path}", self._model),
            Route(prefix + "/chat/completions", self._chat, methods=["POST"]),
            Route(prefix + "/completions", self._complete, methods=["POST"]),
            Route(prefix + "/embeddings", self._embed, methods=["POST"]),
        ]

    async def _health(self, request: Request) -> Response:
        up = self._engine.url is not None and not self.app.draining
        down = "stopping" if self.app.draining else "restarting" if self._engine.restarts else "starting"
        return JSONResponse({"status": "ok" if up else down}, 200 if up else 503)

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

    def _known(self, name: str) -> str:
        """The model that a request means by `name`. Raises Refused where there is none of that name."""
        names = self._served.names
        if not name:
            return next(iter(names))
        if name not in names:
            here = ", ".join(map(repr, names))
            message = f"There is no model {name[:200]!r} here; this server has {here}."
            raise Refused(404, message, "model_not_found", "model")
        return name

    async def _chat(self, request: Request) -> ASGIApp:
        return await self._write(request, ChatRequest)

    async def _complete(self, request: Request) -> ASGIApp:
        return await self._write(request, CompletionRequest)

    async def _write(self, request: Request, kind: type[Sampling]) -> ASGIApp:
        """Read, check and bound the request; what it returns asks the engine."""
        asked, name = await self._read(request, kind)
        if isinstance(asked, ChatRequest) and asked.tools and "tools" not in self._served.features:
            raise self._lacks("tool calls", "tools")
        context = self._served.context
        prompt = await asyncio.to_thread(protocol.prompt_tokens, asked, context, self._count)
        self._charge(request, prompt)
        asked.max_tokens = min(asked.asked_tokens() or protocol.DEFAULT_MAX_TOKENS, context - prompt)
        if isinstance(asked, ChatRequest):
            asked.max_completion_tokens = None
        if asked.temperature is None:
            asked.temperature = self._served.temperature
        return self._relay(asked, name)

    async def _embed(self, request: Request) -> ASGIApp:
        if "embeddings" not in self._served.features:
            raise self._lacks("embeddings", None)
        asked, name = await self._read(request, EmbeddingRequest)
        self._charge(request, await asyncio.to_thread(protocol.input_tokens, asked, self._served.context, self._count))
        return self._relay(asked, name)

    async def _read(self, request: Request, kind: type[Asked]) -> tuple[Any, str]:
        """The request, under the engine's name for the model, and the clients' name."""
        served = self._served
        asked = protocol.read(await self._body(request), kind, served.ignores, "media" in served.features)
        name = self._known(asked.model)
        asked.model = served.names[name]
        return asked, name

    async def _body(self, request: Request) -> bytes:
        """The request's body. Raises Refused where it is too large, too slow, or packed."""
        limits, body = self._limits, bytearray()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Bodies are taken as they are, not compressed.", "unsupported_encoding")
        too_large = Refused(413, f"The body is larger than {limits.body_bytes} bytes.", "body_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limits.body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    body += chunk
                    self._reading_bytes += len(chunk)
                    if len(body) > limits.body_bytes:
                        raise too_large
                    if self._reading_bytes > limits.bodies_bytes:
                        raise Refused(503, "Too many large requests at once.", "too_many_requests")
        except TimeoutError as error:
            raise Refused(408, "The body did not arrive in time.", "request_timeout") from error
        except ClientDisconnect as error:
            raise Refused(GONE, "The client hung up.", "client_closed_request") from error
        finally:
            self._reading_bytes -= len(body)
        return bytes(body)

    def _lacks(self, what: str, param: str | None) -> Refused:
        return Refused(400, f"The engine behind this server does not do {what}.", "unsupported_parameter", param)

    def _charge(self, request: Request, tokens: int) -> None:
        request.scope["call"].prompt_tokens = tokens
        request.scope["account"].tokens.take(tokens)

    def _relay(self, asked: Asked, name: str) -> ASGIApp:
        relay = Relay(self._engine, asked, name, self._limits, self.metrics, log_contents=self._log_contents)

        async def kept(scope: Scope, receive: Receive, send: Send) -> None:
            self._under_way.add(relay)
            try:
                await relay(scope, receive, send)
            finally:
                self._under_way.discard(relay)

        return kept


async def _broken(request: Request, error: Exception) -> Response:
    return error_response(Refused(500, "The gateway failed on this request.", "internal_error"))


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(cast(Refused, error))


async def _no_such_route(request: Request, error: Exception) -> Response:
    return error_response(Refused(404, "There is no such route here.", "not_found"))


async def _no_such_method(request: Request, error: Exception) -> Response:
    allowed = (cast(HTTPException, error).headers or {}).get("Allow", "")
    answer = error_response(Refused(405, f"This route takes {allowed}, not {request.method}.", "method_not_allowed"))
    answer.headers["Allow"] = allowed
    return answer
