"""A client's connection: HTTP/1.1 by uvicorn, except that nothing about it may last for ever."""

import asyncio
import contextlib
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from toolbox.limits import Limits

KEEP_ALIVE_S = 30


def config(app: object, limits: Limits) -> uvicorn.Config:
    """uvicorn's settings for `app`. Its own limits come after ours: what drains is ended by the gateway."""

    class Connection(_Connection):
        allowed = limits

    return uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_level="error", access_log=False,  # type: ignore[arg-type]
        server_header=False, proxy_headers=False, limit_concurrency=limits.connections,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=1,
    )  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn, except that signals stay with the job: it knows that one means stop and two mean now."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """One timer at a time: for a request's headers, for a body nobody wants, for a client that does not read."""

    allowed: Limits
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end_after(self.allowed.headers_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is None and self._idle():
            self._end_after(self.allowed.headers_s)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # its headers are complete
            self._keep()

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self._end_after(self.allowed.linger_s)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.allowed.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer there is no other
            super().send_400_response(msg)
        self.transport.close()

    def _idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

    def _end_after(self, seconds: float) -> None:
        self._keep()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _keep(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
