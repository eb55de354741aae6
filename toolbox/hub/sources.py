"""What a hub is to us: a listing of files with sizes and hashes, and any range of any of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

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
    size: int
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


class BrokenOffError(Exception):
    """A range did not come, or not whole; its `__cause__` says why. Asked again it may, after `wait_s` seconds."""

    def __init__(self, wait_s: float = 0.0) -> None:
        super().__init__()
        self.wait_s = wait_s


class NoRangesError(Exception):
    """The server sends whole files only."""


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
    return HubError(
        _("{hub} ({endpoint}) failed: {reason}.").format(hub=hub.title, endpoint=hub.endpoint, reason=reason(error)),
        _("Check the network, or choose another source with --source; what was fetched so far is kept."),
    )


def reason(error: BaseException) -> str:
    """Why, in a few words, without the addresses that libraries put into their messages: those may carry signatures."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        status = getattr(cause, "status_code", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if status:
            return f"HTTP {status}"
    for cause in reversed(chain):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(chain[-1]).__name__


Progress = Callable[[int], None]
"""Told the size of each piece, in bytes, from several threads."""
