"""One request on its way: to the engine and back, until it is answered, too late, or nobody waits for it any more."""

import asyncio
import base64
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from toolbox.limits import Limits
from toolbox.serving import events, upstream
from toolbox.serving.accounts import Account
from toolbox.serving.guard import GONE, error_response
from toolbox.serving.log import log
from toolbox.serving.metrics import Call, Metrics
from toolbox.serving.protocol import Asked, ChatRequest, EmbeddingRequest, Sampling, StreamOptions
from toolbox.serving.refused import Refused
from toolbox.serving.upstream import Answer

OK = 200
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Upstream(Protocol):
    """The engine as the gateway sees it."""

    url: str | None
    """Where it answers; None while it does not."""
    headers: dict[str, str]
    """What every request to it brings: its key."""
    restarts: int
    streams: int
    """How many answers it is streaming."""
    moved_at: float
    """When anything of a stream came last, in seconds of the monotonic clock."""


class Relay:
    """An ASGI application that answers one request."""

    def __init__(
        self, engine: Upstream, asked: Asked, name: str, limits: Limits, metrics: Metrics, *, log_contents: bool
    ) -> None:
        """`asked` is as the engine takes it, `name` the model's for clients."""
        self._engine, self._asked, self._name = engine, asked, name
        self._limits, self._metrics, self._log_contents = limits, metrics, log_contents
        self._deadline: asyncio.Timeout | None = None
        self._ended = Refused(504, "The answer took too long.", "engine_timeout")
        self._wants_usage = False
        self._as_base64 = isinstance(asked, EmbeddingRequest) and asked.encoding_format == "base64"
        if isinstance(asked, EmbeddingRequest):
            asked.encoding_format = None
        if isinstance(asked, Sampling) and asked.stream:
            self._wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            asked.stream_options = StreamOptions(include_usage=True)

    def end(self, why: Refused) -> None:
        """Let go of the engine now, and tell the client `why`, where it is still there."""
        if self._deadline:
            self._ended = why
            self._deadline.reschedule(asyncio.get_running_loop().time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["call"]
        started = False

        async def told(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with self._bounded(receive), self._asking(call) as answer:
                if answer.status != OK:
                    raise events.refused_by_engine(answer.status, await answer.whole())
                if isinstance(self._asked, Sampling) and self._asked.stream:
                    await self._stream(answer, call, scope["account"], told)
                else:
                    whole = self._whole(await answer.whole(), call, scope["account"])
                    await Response(whole, media_type="application/json")(scope, receive, told)
        except Refused as error:
            call.error = error.code
            if error.status == GONE:
                call.status = GONE
            elif started:
                await send(_body(_event(msgspec.json.encode(error.body())), more=False))
            else:
                await error_response(error)(scope, receive, send)

    @asynccontextmanager
    async def _bounded(self, receive: Receive) -> AsyncIterator[None]:
        """What is inside ends when it takes too long, when the client hangs up, or by `end`."""
        hung_up = Refused(GONE, "The client hung up.", "client_closed_request")
        gone = asyncio.ensure_future(receive())
        try:
            async with asyncio.timeout(self._limits.answer_s) as self._deadline:
                gone.add_done_callback(lambda _: self.end(hung_up))
                yield
        except TimeoutError as error:
            raise self._ended from error
        except upstream.BrokenOffError as error:
            raise engine_down() from error
        finally:
            self._deadline = None
            gone.cancel()

    @asynccontextmanager
    async def _asking(self, call: Call) -> AsyncIterator[Answer]:
        """The engine's answer, its body still to come; the engine is let go whatever happens."""
        if self._engine.url is None:
            raise engine_down()
        # llama.cpp's server refuses ids that are no UUID.
        headers = self._engine.headers | {"x-request-id": call.id.removeprefix("req-")}
        call.model, call.asked_at = self._name, time.monotonic()
        self._metrics.waiting += 1
        answer = None
        try:
            body = msgspec.json.encode(self._asked)
            yield (answer := await upstream.ask(self._engine.url, self._asked.route, headers, body))
        finally:
            self._heard(call)
            if answer:
                answer.close()

    def _heard(self, call: Call) -> None:
        """The first of an answer is there, or none will come."""
        if not call.first_at:
            call.first_at = time.monotonic()
            self._metrics.waiting -= 1

    async def _stream(self, answer: Answer, call: Call, account: Account, send: Send) -> None:
        """Pass the engine's events on; `[DONE]` follows a finished answer, an error one that broke off."""
        passing = events.Events(self._name, self._wants_usage, self._log_contents)
        engine, call.streamed = self._engine, True
        engine.streams, engine.moved_at = engine.streams + 1, time.monotonic()
        await send({"type": "http.response.start", "status": OK, "headers": EVENT_STREAM})
        try:
            async for chunk in answer.chunks():
                engine.moved_at = time.monotonic()
                self._heard(call)
                if told := passing.feed(chunk):
                    await send(_body(told))
                if passing.done:
                    break
            rest = passing.end()
            if not passing.finished:
                raise engine_down()
            await send(_body(rest + _event(events.DONE), more=False))
        finally:
            engine.streams -= 1
            self._settle(call, account, passing.usage or {"completion_tokens": passing.count}, passing.texts)

    def _whole(self, body: bytes, call: Call, account: Account) -> bytes:
        """An answer in one piece, under the name that clients know."""
        field = "data" if isinstance(self._asked, EmbeddingRequest) else "choices"
        piece = events.decoded(body, field)
        self._heard(call)
        texts = [events.text_of(choice) for choice in piece["choices"]] if field == "choices" else []
        self._settle(call, account, piece.get("usage") or {}, texts)
        if self._as_base64:
            for each in piece["data"]:
                each["embedding"] = _as_base64(each["embedding"])
        return msgspec.json.encode(piece | {"model": self._name})

    def _settle(self, call: Call, account: Account, usage: dict[str, Any], texts: list[str]) -> None:
        """Count what the answer took; the prompt was charged as it was estimated."""
        for kind in ("prompt_tokens", "completion_tokens"):
            if isinstance(count := usage.get(kind), int):
                setattr(call, kind, count)
        account.tokens.take(call.completion_tokens)
        if self._log_contents:
            asked = self._asked.messages if isinstance(self._asked, ChatRequest) else self._asked.texts()
            log("contents", id=call.id, asked=msgspec.to_builtins(asked), answer="".join(texts))


def _as_base64(embedding: list[float]) -> str:
    """OpenAI's `encoding_format: base64`: little-endian float32."""
    return base64.b64encode(array("f", embedding).tobytes()).decode()


def engine_down() -> Refused:
    return Refused(503, "The engine is starting or being restarted; try again shortly.", "engine_unavailable")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
