"""A request to the engine and its answer, as it comes: HTTP/1.0 on a connection of its own, so that its end is the end.

No chunks to put together, no pool, no keep-alive: a general client spends three times as long on each token.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

READ_BYTES = 1 << 16
WHOLE_BYTES = 256 << 20
"""No answer in one piece is larger: it would be an engine gone wild."""


class BrokenOffError(Exception):
    """The engine can't be reached, or ended before its answer did."""


class Answer:
    """What the engine says. `close` whatever happens: the engine stops writing then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self._length: int | None = None

    async def begin(self, request: bytes) -> None:
        """Send the request; returns when the answer's headers are there. Raises BrokenOffError."""
        self._writer.write(request)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            version, status, *_reason = head.split(b"\r\n", 1)[0].split(b" ", 2)
            self.status = int(status)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BrokenOffError(str(error)) from error
        headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
        if not version.startswith(b"HTTP/1.") or b"transfer-encoding" in headers:
            raise BrokenOffError(f"an answer to no HTTP/1.0: {head[:100]!r}")
        if length := headers.get(b"content-length"):
            self._length = int(length)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BrokenOffError where it breaks off, as far as that can be seen."""
        left = self._length
        try:
            while left != 0 and (data := await self._reader.read(READ_BYTES)):
                left = None if left is None else left - len(data)
                yield data
        except OSError as error:
            raise BrokenOffError(str(error)) from error
        if left:
            raise BrokenOffError(f"{left} bytes are missing")

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


async def ask(base: str, route: str, headers: Mapping[str, str], body: bytes = b"", method: str = "POST") -> Answer:
    """Send `body`, JSON, to the engine at `base`; its answer's body is still to come. Raises BrokenOffError."""
    address = urlsplit(base)
    told = {"host": address.netloc, "content-length": str(len(body))} | dict(headers)
    told |= {"content-type": "application/json"} if body else {}
    head = [f"{method} {route} HTTP/1.0", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=READ_BYTES)
    except OSError as error:
        raise BrokenOffError(str(error)) from error
    answer = Answer(reader, writer)
    try:
        await answer.begin("\r\n".join(head).encode() + body)
    except BaseException:
        answer.close()
        raise
    return answer
