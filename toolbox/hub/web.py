"""Files of a hub over HTTP: any range of any of them, by signed addresses that are asked for anew as they expire."""

import email.utils
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from toolbox.errors import InputError
from toolbox.hub.sources import STALL_S, BrokenOffError, Entry, NoRangesError, OddAnswerError, Read
from toolbox.i18n import _

if TYPE_CHECKING:
    import httpx

EXPIRED = (401, 403, 404, 410)
"""What an object storage answers to an address that is not signed any more."""
DENIED = (401, 403)
"""What a hub itself answers to who may not read a file; now and then, or behind a proxy, by mistake."""
LONGEST_WAIT_S = 60.0
"""Of what a hub asks for by `Retry-After`."""


def client(headers: Mapping[str, str], direct: bool, stall_s: float = STALL_S) -> "httpx.Client":
    """A client for many connections; `direct`: past every proxy that the environment names.

    Raises InputError for a SOCKS proxy that can't be used.
    """
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # With a transport of its own a client takes no proxy from the environment.
    transport = httpx.HTTPTransport(limits=limits) if direct else None
    plain = {**headers, "Accept-Encoding": "identity"}
    try:
        return httpx.Client(headers=plain, follow_redirects=True, timeout=stall_s, limits=limits, transport=transport)
    except (ImportError, ValueError) as error:
        raise InputError(
            _("The proxy that the environment names can't be used: {reason}").format(reason=str(error).split(",")[0]),
            _("Set HTTPS_PROXY to one that begins with http://, or unset ALL_PROXY."),
        ) from error


@contextmanager
def reading(
    headers: Mapping[str, str],
    secrets: Mapping[str, str],
    address: Callable[[Entry], str],
    denied: InputError,
    direct: bool,
    stall_s: float = STALL_S,
) -> Iterator[Read]:
    """How files are read from the addresses that a hub has for them; `secrets` are headers for the hub alone.

    `denied` is raised where the hub refuses a file, and refuses it again.
    """
    with client(headers, direct, stall_s) as connections:
        yield _Remote(connections, secrets, address, denied).read


class _Remote:
    """Where the bytes come from another host, by a signed address, that is used until it is refused."""

    def __init__(
        self,
        connections: "httpx.Client",
        secrets: Mapping[str, str],
        address: Callable[[Entry], str],
        denied: InputError,
    ) -> None:
        self._client = connections
        self._secrets = secrets
        self._address = address
        self._denied = denied
        self._signed: dict[str, str] = {}
        self._refused: set[str] = set()

    @contextmanager
    def read(self, entry: Entry, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """A Read."""
        import httpx

        whole = start == 0 and stop == entry.size
        try:
            with self._answer(entry, {} if whole else {"Range": f"bytes={start}-{stop - 1}"}) as response:
                if _is_web_page(response, entry):
                    raise OddAnswerError(_("it sent a web page for a file; networks that want a login first do that"))
                if response.status_code == 200 and not whole:
                    raise NoRangesError
                if not _is_range(response, entry, start, whole):
                    raise OddAnswerError(_("it sent another part, or another file, than was asked for"))
                yield _exactly(stop - start, response)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OddAnswerError) as error:
            self._signed.pop(entry.path, None)
            raise BrokenOffError(asked_wait_s(error)) from error

    @contextmanager
    def _answer(self, entry: Entry, ranged: Mapping[str, str]) -> "Iterator[httpx.Response]":
        if signed := self._signed.get(entry.path):
            with self._client.stream("GET", signed, headers=ranged) as response:
                if response.status_code not in EXPIRED:
                    response.raise_for_status()
                    yield response
                    return
            self._signed.pop(entry.path, None)
        with self._from_hub(entry, ranged) as response:
            if response.status_code in DENIED and not self._elsewhere(response):
                if entry.path in self._refused:
                    raise self._denied
                self._refused.add(entry.path)
            response.raise_for_status()
            self._refused.discard(entry.path)
            if self._elsewhere(response):
                self._signed[entry.path] = str(response.url)
            yield response

    @staticmethod
    def _elsewhere(response: "httpx.Response") -> bool:
        """Whether another host answered than was asked."""
        return bool(response.history) and response.history[0].url.host != response.url.host

    def _from_hub(self, entry: Entry, ranged: Mapping[str, str]) -> "AbstractContextManager[httpx.Response]":
        """With the secrets; httpx leaves `Authorization` and `Cookie` out where it is sent on to another host."""
        return self._client.stream("GET", self._address(entry), headers={**ranged, **self._secrets})


def _is_web_page(response: "httpx.Response", entry: Entry) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.status_code == 200 and kind.startswith("text/html") and not entry.path.endswith((".html", ".htm"))


def _is_range(response: "httpx.Response", entry: Entry, start: int, whole: bool) -> bool:
    if whole:
        return int(response.headers.get("Content-Length", entry.size)) == entry.size
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    return begins and total in ("*", str(entry.size))


def _exactly(size: int, response: "httpx.Response") -> Iterator[bytes]:
    """The body, which has to have `size` bytes."""
    for piece in response.iter_raw():
        if len(piece) > size:
            raise OddAnswerError(_("it sent more than was asked for"))
        size -= len(piece)
        yield piece
    if size:
        raise OddAnswerError(_("it sent less than was asked for"))


def asked_wait_s(error: Exception) -> float:
    """What a busy hub asks us to wait, in seconds or until a moment, within a bound; 0: it says nothing."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    if asked.isdecimal():
        return min(float(asked), LONGEST_WAIT_S)
    try:
        moment = email.utils.parsedate_to_datetime(asked).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, moment - time.time()), LONGEST_WAIT_S)
