"""What a hub is to us: a listing of files with sizes and hashes, and any range of any of them."""

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from toolbox.errors import HubError
from toolbox.hub.store import Kind
from toolbox.i18n import _

PARTIAL = ".incomplete"
"""Ending of a file that is on its way."""
PARTS = ".incomplete.parts"
"""Ending of the table of the parts of it that have come."""
CONNECTIONS = 8
"""At once, over all files. Hubs and links often limit each connection, so a large file is fetched through several."""
STALL_S = 30.0
"""A connection that brings nothing for this long is given up and taken up again where it stood."""


class Repo(msgspec.Struct, frozen=True):
    """A repository of a hub at a revision; empty: the hub's own first one."""

    kind: Kind
    id: str
    revision: str


class Entry(msgspec.Struct, frozen=True):
    """A file as a hub lists it. `sha256` is empty where the listing has none; `git_sha1` is git's hash of a blob."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str = ""
    git_sha1: str = ""
    version: str = ""
    """Which content this is, for a listing without hashes: a commit, a date."""

    @property
    def hashed(self) -> bool:
        """Whether the content can be proven."""
        return bool(self.sha256 or self.git_sha1)

    @property
    def identity(self) -> str:
        """The same for the same content; what has come of it may be continued, from whichever hub."""
        return self.sha256 or self.git_sha1 or self.version


class Listing(msgspec.Struct, frozen=True):
    """The files of one revision of a repository."""

    source: str
    endpoint: str
    revision: str
    entries: list[Entry]


def entries(said: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """What a hub said of its files, by the names of Entry's fields. Raises OddAnswerError where that can't be."""
    try:
        return msgspec.convert(list(said), list[Entry])
    except msgspec.ValidationError as error:
        raise no_listing() from error


class BrokenOffError(Exception):
    """A range did not come, or not whole; its `__cause__` says why. Asked again it may, after `wait_s` seconds."""

    def __init__(self, wait_s: float = 0.0) -> None:
        super().__init__()
        self.wait_s = wait_s


class NoRangesError(Exception):
    """The server sends whole files only."""


class OddAnswerError(Exception):
    """An answer that no hub gives; its text says in what way."""


ODD = (OddAnswerError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What the SDKs raise, too, where what they got is not what they know."""


def no_listing() -> OddAnswerError:
    """For what can't be read as a listing."""
    return OddAnswerError(_("what it sent is no listing; networks that want a login first answer like that"))


class Read(Protocol):
    """How a file's bytes from `start` to before `stop` are had, piece by piece; may be called from several threads.

    Raises BrokenOffError also where fewer or more bytes come, NoRangesError.
    """

    def __call__(self, entry: Entry, start: int, stop: int) -> AbstractContextManager[Iterator[bytes]]: ...


class Source(Protocol):
    """A hub, or a mirror of one."""

    name: str
    title: str
    endpoint: str

    def listing(self, repo: Repo) -> Listing:
        """Raises NotFoundError, InputError where access needs a token, HubError where the hub does not answer."""

    def reading(self, repo: Repo) -> AbstractContextManager[Read]:
        """Connections to the files of a repository at the revision of its listing."""


def unreachable(hub: Source, error: BaseException) -> HubError:
    """The sentence for a hub that does not answer, or not as it should."""
    remedy = _("Check the network, or choose another source with --source; what was fetched so far is kept.")
    if proxy := _proxy(hub.endpoint):
        remedy = _(
            "It is asked through the proxy of {variable}: check that and the network, or choose another --source."
        )
        remedy = remedy.format(variable=proxy)
    return HubError(
        _("{hub} ({endpoint}) failed: {reason}.").format(hub=hub.title, endpoint=hub.endpoint, reason=reason(error)),
        remedy,
    )


def _proxy(endpoint: str) -> str:
    """The variable that names the proxy on the way to `endpoint`; empty: there is none."""
    address, proxies = urlsplit(endpoint), getproxies()
    if not address.hostname or proxy_bypass(address.hostname):
        return ""
    return next((f"{name.upper()}_PROXY" for name in (address.scheme, "all") if proxies.get(name)), "")


def reason(error: BaseException) -> str:
    """Why, in a few words, without the addresses that libraries put into their messages: those may carry signatures."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link and link not in chain and not isinstance(link, NoRangesError):
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        status = getattr(cause, "status_code", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if status:
            return f"HTTP {status}"
    for cause in reversed(chain):
        if isinstance(cause, OddAnswerError):
            return str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _("its certificate is not trusted ({why}): the clock may be wrong, or a proxy reads along").format(
                why=cause.verify_message
            )
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.partition(" (_ssl.c")[0]
    kinds = [type(cause).__name__ for cause in chain]
    if any("Timeout" in kind for kind in kinds):
        return _("it does not answer")
    if "ProxyError" in kinds:
        return _("the proxy does not let us through")
    if {"RemoteProtocolError", "ReadError"} & set(kinds):
        return _("the connection broke off")
    return kinds[-1]


def address(endpoint: str) -> str:
    """An endpoint as requests need it; people leave out the scheme, and end it with a slash."""
    return (endpoint if "://" in endpoint else f"https://{endpoint}").rstrip("/")


Progress = Callable[[int], None]
"""Told the size of each piece, in bytes, from several threads."""
