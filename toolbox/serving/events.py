"""An engine's server-sent events on their way to a client: renamed, counted, and passed on as they are."""

import re
from typing import Any

import msgspec

from toolbox.serving.refused import Refused

DONE = b"[DONE]"
MODEL = re.compile(rb'"model":\s?"(?:[^"\\]|\\.)*"')
"""Matches no text within an answer: quotes stand escaped there."""
NOTABLE = re.compile(rb'"error"|"finish_reason":\s?"|"usage":\s?\{|"choices":\s?\[\]')
"""What makes an event worth reading; all others hold a piece of text and nothing else."""


class Events:
    """Turns chunks of what an engine streams into chunks for the client."""

    def __init__(self, name: str, wants_usage: bool, keep_text: bool = False) -> None:
        """`name`: the model's, for clients. `wants_usage`: the client asked for an event that tells tokens."""
        self._model = b'"model":' + msgspec.json.encode(name)
        self._wants_usage, self._keep_text, self._rest = wants_usage, keep_text, b""
        self.usage: dict[str, Any] | None = None
        self.count = 0
        """Events with text: about as many as tokens."""
        self.finished = False
        self.done = False
        self.texts: list[str] = []
        """What was written, where it is kept."""

    def feed(self, chunk: bytes) -> bytes:
        """What `chunk` completes. Cut at line feeds only: a line separator inside a text is text.

        Raises Refused where the engine tells an error, or what OpenAI's API does not know.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        out = []
        for line in lines:
            if not line.startswith(b"data:") or self.done:
                continue
            data = line[5:].strip()
            if data == DONE:
                self.done = True
            elif not self._keep_text and b'"choices"' in data and not NOTABLE.search(data):
                self.count += 1
                out.append(b"data: " + self._renamed(data) + b"\n\n")
            elif passed := self._read(data):
                out.append(b"data: " + passed + b"\n\n")
        return b"".join(out)

    def end(self) -> bytes:
        """What is left when the engine says no more."""
        return self.feed(b"\n") if self._rest else b""

    def _renamed(self, data: bytes) -> bytes:
        return MODEL.sub(lambda _match: self._model, data, count=1)

    def _read(self, data: bytes) -> bytes:
        """An event that ends an answer, tells its tokens, or is none; empty where the client did not ask for it."""
        piece = decoded(data)
        choices = piece["choices"]
        if isinstance(piece.get("usage"), dict):
            self.usage = piece["usage"]
            if not self._wants_usage:
                if not choices:
                    return b""
                del piece["usage"]
        self.count += bool(choices)
        self.finished = self.finished or any(choice.get("finish_reason") for choice in choices)
        if self._keep_text:
            self.texts += [text_of(choice) for choice in choices]
        return self._renamed(msgspec.json.encode(piece))


def text_of(choice: dict[str, Any]) -> str:
    """What a choice says: a chat's message, a piece of one, or a completion's text."""
    said = choice.get("delta") or choice.get("message") or choice
    return str(said.get("content") or said.get("text") or "") if isinstance(said, dict) else ""


def decoded(data: bytes, field: str = "choices") -> dict[str, Any]:
    """What an engine sent, or a part of it: an object with a list of objects as `field`.

    Raises Refused where it is an error, or nothing that OpenAI's API knows.
    """
    try:
        piece = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise refused_by_engine(502, data) from error
    listed = piece.get(field) if isinstance(piece, dict) and not piece.get("error") else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise refused_by_engine(502, data)
    return piece


def refused_by_engine(status: int, body: bytes) -> Refused:
    """What an engine says in its own words (FastAPI's `detail`, OpenAI's `error.message` …), in OpenAI's shape."""
    try:
        said = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = None
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail") or said.get("message")
    told = said if isinstance(said, dict) else {"message": said}
    if 400 <= status < 500 and status != 401:
        code, param = (_word(told.get(name)) for name in ("code", "param"))
        message = str(told.get("message") or "The engine refused the request.")[:500]
        return Refused(status, message, code or "engine_refused", param)
    return Refused(503 if status == 503 else 502, "The engine failed on this request.", "engine_error")


def _word(value: Any) -> str | None:
    return value[:100] if isinstance(value, str) else None
