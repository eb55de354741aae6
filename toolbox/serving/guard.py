"""Around every route: the key, the number of requests at once, the total time, the log, the metrics."""

import asyncio
import hmac
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolbox.serving.limits import Limits
from toolbox.serving.log import log
from toolbox.serving.metrics import Metrics
from toolbox.serving.protocol import Refused

OPEN = "/health"
"""The one route without a key: load balancers and HEALTHCHECK have none. It tells nothing but "ok"."""
ROUTES = (OPEN, "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


def error_response(error: Refused) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "2"}}
    return JSONResponse(error.body(), error.status, headers.get(error.status))


class Guard:
    """ASGI middleware. A request is under way until its last byte is sent, so a slow reader counts too."""

    def __init__(self, app: ASGIApp, key: str, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, status = time.monotonic(), 0
        scope["request_id"] = f"req-{uuid.uuid4().hex}"

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = scope["request_id"]
            await send(message)

        self._metrics.in_flight += 1
        try:
            async with asyncio.timeout(self._limits.body_s + self._limits.answer_s):
                await self._passed(scope)(scope, receive, told)
        except TimeoutError:
            status = 499
        finally:
            self._metrics.in_flight -= 1
            self._record(scope, status, time.monotonic() - began)

    def _passed(self, scope: Scope) -> ASGIApp:
        """The application, or what says why this request does not get there."""
        if scope["path"] != OPEN and not self._has_key(Headers(scope=scope)):
            return error_response(Refused(401, "The API key is missing or wrong.", "invalid_api_key"))
        if scope["method"] == "POST" and self._metrics.in_flight > self._limits.in_flight:
            return error_response(Refused(429, "Too many requests at once.", "too_many_requests"))
        return self._app

    def _has_key(self, headers: Headers) -> bool:
        return hmac.compare_digest(headers.get("authorization", "").encode(), self._expected)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        route = next((route for route in ROUTES if path in (route, route.removeprefix("/v1"))), "other")
        self._metrics.request(route, status, seconds)
        if scope["path"] != OPEN:
            client = (scope.get("client") or ["?"])[0]
            log("request", id=scope["request_id"], client=client, method=scope["method"], route=route, status=status,
                seconds=round(seconds, 3))  # fmt: skip
