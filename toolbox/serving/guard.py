"""Around every route: whose key it is, how many requests at once, the total time, the log, the metrics."""

import asyncio
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolbox.limits import Limits
from toolbox.serving.accounts import Account, Accounts
from toolbox.serving.log import log
from toolbox.serving.metrics import Call, Metrics
from toolbox.serving.refused import Refused

OPEN = "/health"
"""The one route without a key: load balancers and HEALTHCHECK have none. It tells nothing but how the server is."""
ROUTES = (OPEN, "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")
GONE = 499
"""nginx's status for a client that hung up, in the log and the metrics."""


def error_response(error: Refused) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


def stopping() -> Refused:
    return Refused(503, "The server is being stopped.", "server_stopping")


class Guard:
    """ASGI middleware. A request is under way until its last byte is sent, so a slow reader counts too."""

    def __init__(self, app: ASGIApp, accounts: Accounts, limits: Limits, metrics: Metrics) -> None:
        self._app, self._accounts, self._limits, self._metrics = app, accounts, limits, metrics
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        account = self._accounts.find(Headers(scope=scope).get("authorization", ""))
        call = Call(id=f"req-{uuid.uuid4().hex}", route=_route(scope["path"]), key=account.name if account else "")
        scope["call"], scope["account"] = call, account

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                MutableHeaders(scope=message).update(
                    {"x-request-id": call.id, **(account.headers() if account else {})}
                )
            await send(message)

        self._metrics.in_flight += 1
        if account:
            account.in_flight += 1
        try:
            async with asyncio.timeout(self._limits.body_s + self._limits.answer_s + self._limits.write_s):
                await self._passed(scope, account)(scope, receive, told)
        except TimeoutError:
            call.status = GONE
        finally:
            self._metrics.in_flight -= 1
            if account:
                account.in_flight -= 1
            self._record(scope, call)

    def _passed(self, scope: Scope, account: Account | None) -> ASGIApp:
        """The application, or what says why this request does not get there."""
        if scope["path"] == OPEN:
            return self._app
        if account is None:
            return error_response(Refused(401, "The API key is missing or wrong.", "invalid_api_key"))
        if scope["method"] != "POST":
            return self._app
        if self.draining:
            return error_response(stopping())
        if self._metrics.in_flight > self._limits.in_flight:
            return error_response(Refused(429, "Too many requests at once.", "too_many_requests"))
        try:
            account.admit()
        except Refused as error:
            return error_response(error)
        return self._app

    def _record(self, scope: Scope, call: Call) -> None:
        self._metrics.add(call)
        if scope["path"] == OPEN:
            return
        told: dict[str, object] = {"model": call.model} if call.model else {}
        if call.streamed:
            told["first_s"] = round(call.first_at - call.asked_at, 3)
        if call.error:
            told["error"] = call.error
        log(
            "request", id=call.id, client=(scope.get("client") or ["?"])[0], key=call.key, method=scope["method"],
            route=call.route, status=call.status, seconds=round(time.monotonic() - call.began, 3),
            prompt_tokens=call.prompt_tokens, completion_tokens=call.completion_tokens, **told,
        )  # fmt: skip


def _route(path: str) -> str:
    return next((route for route in ROUTES if path in (route, route.removeprefix("/v1"))), "other")
