"""A request to the engine and its answer, chunk by chunk: h11 on a connection of its own, nothing in between.

A general client spends three times as long on each token as h11 itself does.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import h11

READ_BYTES = 1 << 16
WHOLE_BYTES = 256 << 20
"""No answer in one piece is larger: it would be an engine gone wild."""


class BrokenOffError(Exception):
    """The engine can't be reached, or ended before its answer did."""


class Answer:
    """What the engine says. `close` whatever happens: the engine stops writing then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._connection = reader, writer, h11.Connection(h11.CLIENT)
        self.status = 0

    async def begin(self, request: h11.Request, body: bytes) -> None:
        """Send the request; returns when the answer's status is there. Raises BrokenOffError."""
        say = self._connection.send
        parts = [say(request), say(h11.Data(data=body)), say(h11.EndOfMessage())]
        self._writer.write(b"".join(part for part in parts if part))
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        self.status = event.status_code

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BrokenOffError where it breaks off."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def whole(self) -> bytes:
        """The body. Raises BrokenOffError where it breaks off, or never ends."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > WHOLE_BYTES:
                raise BrokenOffError(f"more than {WHOLE_BYTES} bytes")
        return bytes(body)

    def close(self) -> None:
        self._writer.transport.abort()

    async def _next(self) -> Any:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(READ_BYTES))
        except (OSError, h11.RemoteProtocolError) as error:
            raise BrokenOffError(str(error)) from error
        if isinstance(event, h11.ConnectionClosed):
            raise BrokenOffError("closed")
        return event


async def ask(base: str, route: str, headers: Mapping[str, str], body: bytes = b"", method: str = "POST") -> Answer:
    """Send `body`, JSON, to the engine at `base`; its answer's body is still to come. Raises BrokenOffError."""
    address = urlsplit(base)
    told = {"host": address.netloc, "connection": "close", "content-length": str(len(body))}
    told |= {"content-type": "application/json"} if body else {}
    request = h11.Request(method=method, target=route, headers=list((told | dict(headers)).items()))
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=READ_BYTES)
    except OSError as error:
        raise BrokenOffError(str(error)) from error
    answer = Answer(reader, writer)
    try:
        await answer.begin(request, body)
    except BaseException:
        answer.close()
        raise
    return answer
