"""What a hub is to us: a listing of files with sizes and hashes, and a way to get some of them."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from toolbox.config import Home, Settings
from toolbox.errors import HubError
from toolbox.hub.store import Kind
from toolbox.i18n import _

PARTIAL = ".incomplete"
"""Ending of a file that is on its way; what stands in it is a beginning of the file, and is resumed by Range."""
CONNECTIONS = 4
ANSWER_S = 6.0
"""How long a hub may take to answer before another is asked instead."""
HEAD_START_S = 0.5
"""By how much another hub must be quicker than the first in the order, ModelScope, to be asked in its place."""


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

    @property
    def hashed(self) -> bool:
        """Whether the content can be proven."""
        return bool(self.sha256 or self.git_sha1)


class Listing(msgspec.Struct, frozen=True):
    """The files of one revision of a repository."""

    source: str
    endpoint: str
    revision: str
    entries: list[Entry]


class Source(Protocol):
    """A hub."""

    name: str
    title: str
    endpoint: str

    def listing(self, repo: Repo) -> Listing:
        """Raises NotFoundError, InputError where access needs a token, HubError where the hub does not answer."""

    def get(self, repo: Repo, entries: Sequence[Entry], folder: Path, progress: Callable[[int], None]) -> None:
        """Put the entries below `folder`, resuming what ends in PARTIAL. Sizes are right, hashes are not checked.

        `progress` is told the size of each piece, in bytes, from several threads. Raises HubError, OSError.
        """


def ordered(source: str, before: str, settings: Settings, home: Home, environ: Mapping[str, str]) -> list[Source]:
    """The hubs to ask, best first: the one that was named; for `auto` both, in front that which a copy on this machine
    is from (`before`), else that which answers first."""
    from toolbox.hub.huggingface import HuggingFace
    from toolbox.hub.modelscope import ModelScope

    modelscope = ModelScope(environ.get("MODELSCOPE_ENDPOINT") or settings.modelscope_endpoint, environ, home)
    huggingface = HuggingFace(environ.get("HF_ENDPOINT") or settings.huggingface_endpoint)
    if source != "auto":
        return [hub for hub in (modelscope, huggingface) if hub.name == source]
    hubs: list[Source] = [modelscope, huggingface]
    known = [index for index, hub in enumerate(hubs) if hub.name == before]
    first = known[0] if known else quickest([hub.endpoint for hub in hubs])
    return hubs[first:] + hubs[:first]


def quickest(endpoints: Sequence[str], wait_s: float = ANSWER_S, head_start_s: float = HEAD_START_S) -> int:
    """Index of the address that answers first, whatever it answers; 0 in a near tie, or where none does in time."""
    import httpx

    answers: queue.Queue[int | None] = queue.Queue()
    client = httpx.Client(timeout=wait_s)

    def ask(index: int) -> None:
        time.sleep(head_start_s if index else 0)
        try:
            client.head(endpoints[index])
        except (httpx.HTTPError, httpx.InvalidURL):
            answers.put(None)
        else:
            answers.put(index)

    for index in range(len(endpoints)):
        threading.Thread(target=ask, args=(index,), daemon=True).start()
    for _endpoint in endpoints:
        try:
            answer = answers.get(timeout=wait_s + head_start_s)
        except queue.Empty:
            break
        if answer is not None:
            return answer
    return 0


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
