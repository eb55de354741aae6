"""A request's rows as OpenAI's objects: whole answers, or pieces of them as server-sent events."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from toolbox.serving.batching import toolcalls
from toolbox.serving.batching.rows import Row, Told
from toolbox.serving.batching.sampling import Chosen
from toolbox.serving.protocol import ChatRequest, Refused, Sampling


class Inbox:
    """What a request's rows tell, brought from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[tuple[Row, Told]]()

    def tell(self, row: Row, told: Told) -> None:
        """Called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._news.put_nowait, (row, told))

    async def until_all_end(self, rows: Sequence[Row]) -> AsyncIterator[tuple[Row, Told]]:
        """The news of `rows`, in order; they are let go of where nobody listens any more. Raises Refused."""
        ended = 0
        try:
            while ended < len(rows):
                row, told = await self._news.get()
                if told.failure:
                    raise Refused(500, told.failure, "engine_error")
                ended += told.reason is not None
                yield row, told
        finally:
            for row in rows:
                row.cancelled = True


class Answer:
    """What all objects of one answer share. `names`: the tools that may be called."""

    def __init__(self, asked: Sampling, model: str, rows: Sequence[Row], tokenizer: Any) -> None:
        self._chat = isinstance(asked, ChatRequest)
        self._asked, self._rows, self._tokenizer = asked, rows, tokenizer
        kind = "chat.completion" if self._chat else "text_completion"
        self._kind = kind + ".chunk" if self._chat and asked.stream else kind
        prefix = "chatcmpl-" if self._chat else "cmpl-"
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        tools = (asked.tools or []) if isinstance(asked, ChatRequest) and asked.tool_choice != "none" else []
        self._tools = [str(tool["function"]["name"]) for tool in tools]
        self._read = toolcalls.read_forced if rows[0].guide else toolcalls.read

    async def whole(self, news: AsyncIterator[tuple[Row, Told]]) -> bytes:
        """One object, once all is said."""
        texts, reasons = [""] * len(self._rows), [""] * len(self._rows)
        chosen: list[list[Chosen]] = [[] for _row in self._rows]
        async for row, told in news:
            texts[row.number] += told.text
            chosen[row.number] += told.chosen
            reasons[row.number] = told.reason or ""
        choices = [
            self._choice(number, *self._finished(texts[number], reasons[number]), chosen[number])
            for number in range(len(self._rows))
        ]
        return self._object({"choices": choices, "usage": self._usage()})

    async def events(self, news: AsyncIterator[tuple[Row, Told]]) -> AsyncIterator[bytes]:
        """Server-sent events; an error of the engine's is the last one where it comes in the middle."""
        held = [""] * len(self._rows)
        try:
            if self._chat:
                for row in self._rows:
                    yield _event(self._piece(row, {"role": "assistant", "content": ""}, None, []))
            async for row, told in news:
                text = held[row.number] + told.text
                if self._tools and not told.reason:
                    certain = toolcalls.certain(text)
                    text, held[row.number] = text[:certain], text[certain:]
                calls: list[dict[str, Any]] = []
                reason = told.reason
                if reason and self._tools:
                    text, calls, reason = self._parsed(text, reason)
                delta: dict[str, Any] = ({"content": text} if text else {}) if self._chat else {"text": text}
                if calls:
                    delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
                if delta.get("text") or delta.get("content") or calls or reason or self._asked_logprobs:
                    yield _event(self._piece(row, delta, reason, told.chosen))
            if self._asked.stream_options and self._asked.stream_options.include_usage:
                yield _event(self._object({"choices": [], "usage": self._usage()}))
            yield _event(b"[DONE]")
        except Refused as error:
            yield _event(msgspec.json.encode(error.body()))

    @property
    def _asked_logprobs(self) -> bool:
        return self._rows[0].settings.logprobs is not None

    def _finished(self, text: str, reason: str) -> tuple[dict[str, Any], str]:
        if not self._chat:
            return {"text": text}, reason
        said, calls, reason = self._parsed(text, reason) if self._tools else (text, [], reason)
        message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None}
        return {"message": message | ({"tool_calls": calls} if calls else {})}, reason

    def _parsed(self, text: str, reason: str) -> tuple[str, list[dict[str, Any]], Any]:
        said, calls = self._read(text, self._tools)
        return said, [call.told() for call in calls], "tool_calls" if calls and reason == "stop" else reason

    def _choice(self, number: int, content: dict[str, Any], reason: str | None, chosen: list[Chosen]) -> dict[str, Any]:
        logprobs = self._logprobs(chosen) if self._asked_logprobs and chosen else None
        return {"index": number, **content, "logprobs": logprobs, "finish_reason": reason}

    def _piece(self, row: Row, delta: dict[str, Any], reason: str | None, chosen: list[Chosen]) -> bytes:
        content = {"delta": delta} if self._chat else delta
        return self._object({"choices": [self._choice(row.number, content, reason, chosen)]})

    def _object(self, more: dict[str, Any]) -> bytes:
        return msgspec.json.encode(self._head | {"object": self._kind} | more)

    def _usage(self) -> dict[str, Any]:
        prompt, written = self._rows[0].prompt, sum(row.count for row in self._rows)
        return {
            "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": self._rows[0].shared},
        }  # fmt: skip

    def _logprobs(self, chosen: list[Chosen]) -> dict[str, Any]:
        if self._chat:
            return {
                "content": [
                    self._token(one.token, one.logprob)
                    | {"top_logprobs": [self._token(token, value) for token, value in one.likeliest]}
                    for one in chosen
                ],
                "refusal": None,
            }
        tokens = [self._text(one.token) for one in chosen]
        offsets, end = [], 0
        for token in tokens:
            offsets.append(end)
            end += len(token)
        return {
            "tokens": tokens, "token_logprobs": [one.logprob for one in chosen], "text_offset": offsets,
            "top_logprobs": [{self._text(token): value for token, value in one.likeliest} for one in chosen],
        }  # fmt: skip

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
