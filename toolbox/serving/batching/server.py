"""OpenAI's routes over the engine: what the gateway asks, and nobody else who has not the key."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from toolbox.serving import protocol
from toolbox.serving.batching import guided
from toolbox.serving.batching.answers import Answer, Inbox
from toolbox.serving.batching.embedding import Embedder
from toolbox.serving.batching.engine import Engine, Voice
from toolbox.serving.batching.guided import Guide
from toolbox.serving.batching.prompts import chat_ids, plain_ids
from toolbox.serving.batching.rows import Row, Told
from toolbox.serving.batching.sampling import Settings
from toolbox.serving.batching.scheduler import QueueFull
from toolbox.serving.batching.texts import Text
from toolbox.serving.protocol import ChatRequest, CompletionRequest, EmbeddingRequest, Refused, Sampling

SILENT_S = 300.0
"""A step that takes longer counts as hung."""
DEFAULT_TOKENS = 1024
OWN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
"""Fields of a request that are settings under the same name."""


class Server:
    """`app` is the ASGI application. Until `serve` it answers that it is loading."""

    def __init__(self, name: str, key: str) -> None:
        """`name`: what requests call the model without an adapter."""
        self._name, self._expected = name, f"Bearer {key}" if key else ""
        self._engine: Engine | None = None
        self._embedder: Embedder | None = None
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
            ],
            exception_handlers={Refused: _refused, ClientDisconnect: _gone},
        )

    def serve(self, made: Engine | Embedder) -> None:
        """Answer with `made` from now on."""
        if isinstance(made, Embedder):
            self._embedder = made
        else:
            self._engine = made

    async def _health(self, request: Request) -> Response:
        engine = self._engine
        if not (engine or self._embedder):
            return JSONResponse({"status": "loading"}, 503)
        hung = engine is not None and engine.scheduler.silent_s > SILENT_S
        return JSONResponse({"status": "hung" if hung else "ok"}, 503 if hung else 200)

    async def _models(self, request: Request) -> Response:
        self._check(request)
        names = [name or self._name for name in (self._engine.voices if self._engine else [""])]
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: type[Sampling]) -> Response:
        engine = self._writing(request)
        asked = protocol.read(await request.body(), kind, frozenset())
        name, voice = self._voice(engine, asked.model)
        ids, guide = await asyncio.to_thread(_read, voice, asked)
        inbox = Inbox()
        rows = _rows(ids, guide, asked, name, voice, engine, inbox)
        try:
            engine.scheduler.submit(rows)
        except QueueFull:
            raise Refused(503, "Too many requests wait already.", "engine_busy") from None
        answer = Answer(asked, asked.model or self._name, rows, voice.tokenizer)
        news = inbox.until_all_end(rows)
        if asked.stream:
            return StreamingResponse(_closing(answer.events(news), rows), media_type="text/event-stream")
        return Response(await _unless_gone(request, answer.whole(news), rows), media_type="application/json")

    async def _embed(self, request: Request) -> Response:
        self._check(request)
        asked = protocol.read(await request.body(), EmbeddingRequest, frozenset())
        if self._embedder is None:
            raise Refused(400, "This model writes texts; it was not made for embeddings.", "not_an_embedding_model")
        if asked.model not in ("", self._name):
            raise _no_such_model(asked.model)
        body = await asyncio.to_thread(self._embedder.answer, asked, asked.model or self._name)
        return Response(body, media_type="application/json")

    def _writing(self, request: Request) -> Engine:
        self._check(request)
        if self._engine is None:
            raise Refused(400, "This model makes embeddings; it does not write.", "not_a_writing_model")
        return self._engine

    def _check(self, request: Request) -> None:
        """Raises Refused without the key, and before the model is loaded."""
        given = request.headers.get("authorization", "")
        if self._expected and not hmac.compare_digest(given.encode(), self._expected.encode()):
            raise Refused(401, "The engine's key is missing or wrong.", "invalid_api_key")
        if not (self._engine or self._embedder):
            raise Refused(503, "The engine is starting.", "engine_unavailable")

    def _voice(self, engine: Engine, model: str) -> tuple[str, Voice]:
        name = "" if model in ("", self._name) else model
        if name not in engine.voices:
            raise _no_such_model(model)
        return name, engine.voices[name]


def _no_such_model(name: str) -> Refused:
    return Refused(404, f"There is no model {name[:200]!r} here.", "model_not_found", "model")


def _read(voice: Voice, asked: Sampling) -> tuple[list[int], Guide | None]:
    """The prompt's token ids, and what the answer is held to. Raises Refused."""
    grammar = guided.grammar(asked, voice.style)
    guide = voice.guides.make(grammar) if grammar else None
    if isinstance(asked, ChatRequest):
        return chat_ids(voice.tokenizer, asked), guide
    return plain_ids(voice.tokenizer, "".join(asked.texts())), guide


def _rows(
    ids: list[int], guide: Guide | None, asked: Sampling, name: str, voice: Voice, engine: Engine, inbox: Inbox
) -> list[Row]:
    """A row for each answer. Raises Refused where the prompt leaves no room for one."""
    room = engine.context - len(ids)
    if not ids:
        raise Refused(400, "The prompt is empty.", "invalid_value", asked.spoken)
    if room < 1:
        message = f"The prompt has {len(ids)} tokens; there may be {engine.context - 1}."
        raise Refused(400, message, "context_length_exceeded", asked.spoken)
    settings = _settings(asked, voice.settings, room)
    rows: list[Row] = []
    tell = inbox.tell if asked.stream else _Gathering(inbox).tell
    for number in range(asked.n or 1):
        text = Text(voice.tokenizer, settings.stop)
        rows.append(
            Row(ids, settings, ends=voice.ends, text=text, tell=tell, adapter=name, number=number,
                after=rows[0] if rows else None, guide=guide.copy() if guide else None)
        )  # fmt: skip
    return rows


def _settings(asked: Sampling, own: Settings, room: int) -> Settings:
    given: dict[str, Any] = {name: getattr(asked, name) for name in OWN if getattr(asked, name) is not None}
    stop = asked.stop or ()
    logprobs = getattr(asked, "logprobs", None)
    if isinstance(asked, ChatRequest):
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return msgspec.structs.replace(
        own, **given, max_tokens=min(asked.asked_tokens() or DEFAULT_TOKENS, room), logprobs=logprobs,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )  # fmt: skip


class _Gathering:
    """Tells an answer's news in one piece, for those who wait for the whole: the event loop wakes once a row."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox, self._so_far = inbox, dict[int, tuple[list[str], list[Any]]]()

    def tell(self, row: Row, told: Told) -> None:
        texts, chosen = self._so_far.setdefault(row.number, ([], []))
        texts.append(told.text)
        chosen += told.chosen
        if told.reason or told.failure:
            self._inbox.tell(row, msgspec.structs.replace(told, text="".join(texts), chosen=chosen))


async def _closing(events: AsyncIterator[bytes], rows: list[Row]) -> AsyncIterator[bytes]:
    """`events`, and an end to the rows however they end: a client that hangs up cancels this."""
    try:
        async for event in events:
            yield event
    finally:
        for row in rows:
            row.cancelled = True


async def _unless_gone(request: Request, work: Any, rows: list[Row]) -> bytes:
    """What `work` gives, unless the client hangs up first: its rows are let go of then."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        body: bytes = working.result()
        return body
    finally:
        for row in rows:
            row.cancelled = True
        gone.cancel()
        working.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body(), error.status)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
