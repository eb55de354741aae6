"""Requests to an OpenAI-compatible server: a bounded number at once, tried again for a bounded time."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx

from toolbox import access, client
from toolbox.errors import EngineError, InputError
from toolbox.i18n import _

AT_ONCE = 8
ATTEMPTS = 7
"""With waits of 1, 2, 4 … seconds between them: a server may take a minute to start."""
LONGEST_WAIT_S = 60.0
"""Between two attempts, also where a server asks for more by `Retry-After`."""
ANSWER_S, CONNECT_S = 900.0, 10.0


class RefusedError(InputError):
    """The server does not take such a request; `said` is what it said, in full."""

    def __init__(self, status: int, said: str) -> None:
        self.said = said
        super().__init__(
            _("The server refused ({status}): {reason}").format(status=status, reason=" ".join(said[:300].split())),
            _("Check the model's name and what the server can do."),
        )


class Server:
    """A server by its address, with or without /v1, and a model's name there. `key` is in no text that this makes."""

    def __init__(self, url: str, model: str, key: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url, self.model = access.server(url), model
        self._sleep = sleep
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=not access.is_loopback(urlsplit(self.url).hostname or ""),
        )
        self._unknown: set[str] = set()
        """Fields that this server does not take."""

    def post_all(self, route: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers to all bodies, in their order. Raises RefusedError, InputError, EngineError."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda body: self.post(route, body), bodies))

    def post(self, route: str, body: dict[str, Any], optional: Sequence[str] = ("chat_template_kwargs",)) -> Any:
        """The answer to `body`; a field in `optional` that the server does not know is left out from then on."""
        body = {"model": self.model, **{name: value for name, value in body.items() if name not in self._unknown}}
        try:
            return self._post(route, body)
        except RefusedError as error:
            if not (unknown := [name for name in optional if name in body and name in error.said]):
                raise
            self._unknown.update(unknown)
            return self.post(route, body, optional)

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.post(f"{self.url}/v1/{route}", json=body)
            except httpx.TransportError as error:
                reason, wait = type(error).__name__, 2.0**attempt
            else:
                if answer.is_success:
                    return _decoded(answer)
                if answer.status_code not in client.BUSY:
                    raise _failure(answer, self.url)
                reason, wait = str(answer.status_code), client.asked_to_wait(answer, 2.0**attempt)
            if attempt < ATTEMPTS - 1:
                self._sleep(min(wait, LONGEST_WAIT_S))
        raise EngineError(
            _("The server at {url} does not answer: {reason}.").format(url=self.url, reason=reason),
            _("What was answered is kept: runs resume"),
        )


@functools.cache
def key_of(variable: str) -> str:
    """The key in the environment, which no child process of ours inherits then."""
    return os.environ.pop(variable, "")


def _decoded(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise RefusedError(answer.status_code, answer.text) from error


def _failure(answer: httpx.Response, url: str) -> InputError:
    if answer.status_code in (401, 403):
        return client.refused_key(url)
    if answer.is_redirect:
        return InputError(
            _("The server at {url} sends elsewhere, and a key is not sent along.").format(url=url),
            _("Name the address that it sends to."),
        )
    return RefusedError(answer.status_code, answer.text)
