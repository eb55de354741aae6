"""Which hubs and mirrors there are (`--source`), and which of them brings a repository soonest (`auto`)."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from toolbox import units
from toolbox.config import Home, Settings
from toolbox.errors import CorruptError, HubError, InputError, NotFoundError, ToolboxError
from toolbox.hub import names
from toolbox.hub.folder import Folder
from toolbox.hub.huggingface import HuggingFace
from toolbox.hub.modelscope import ModelScope
from toolbox.hub.sources import BrokenOffError, Entry, Listing, NoRangesError, Repo, Source, unreachable
from toolbox.hub.transfer import Pace
from toolbox.i18n import _

SAMPLE, SAMPLE_S = 2 << 20, 1.5
"""A hub is tried out on so many bytes of the largest file, for so many seconds."""
WORTHWHILE = 8 << 20
"""Below so many bytes the listing alone tells enough."""
ANSWER_S = 20.0
"""How long all hubs together may take before they are asked one after the other."""
NO_RANGES = 1e5
"""Taken for the bytes a second of a hub that sends whole files only: it comes last."""
ROUNDS = 3
"""How often in a row a hub may bring nothing new, or a wrong hash, before it is given up."""
LONGER = 5
"""By how much each wait for hubs that all failed is longer than the one before."""
NEAR, NEAR_S = 1.25, 0.5
"""A hub whose estimate is that close to the best one's is as good; then the order decides, ModelScope first."""


class Answer(msgspec.Struct, frozen=True):
    """What came of trying a hub out: its listing and how long all would take from it, or why it can't."""

    hub: Source
    listing: Listing | None = None
    problem: ToolboxError | None = None
    bytes_per_s: float = 0.0
    """0: too little was to be fetched to measure it."""
    estimate_s: float = float("inf")


class Turns:
    """Whose turn it is: one that failed is asked again after the others, until it is given up."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._hubs = deque(answer.hub for answer in answers if not answer.problem)
        self._failures = [answer.problem for answer in answers if answer.problem]
        self._strikes: dict[Source, int] = {}

    @property
    def hub(self) -> Source | None:
        """Whom to ask now; None where all were given up."""
        return self._hubs[0] if self._hubs else None

    @property
    def alone(self) -> bool:
        return len(self._hubs) == 1

    def begin(self) -> bool:
        """The hub has a listing; true for the first that has."""
        first = not self._strikes
        self._strikes.setdefault(self._hubs[0], 0)
        return first

    def fail(self, error: ToolboxError, brought: bool) -> None:
        """Note why its turn ended; `brought`: something new came. One without a listing gets no second turn."""
        self._failures.append(error)
        hub = self._hubs[0]
        began = hub in self._strikes
        self._strikes[hub] = 0 if brought and isinstance(error, HubError) else self._strikes.get(hub, 0) + 1
        if isinstance(error, InputError) or not began or self._strikes[hub] >= ROUNDS:
            self._hubs.popleft()
        elif isinstance(error, HubError):
            self._hubs.rotate(-1)

    @property
    def pause(self) -> int:
        """How long to wait before the next turn, in some unit: 0 while there is a hub that did not just fail."""
        fewest = min((self._strikes.get(hub, 0) for hub in self._hubs), default=0)
        return LONGER ** (fewest - 1) if fewest and isinstance(self._failures[-1], HubError) else 0

    @property
    def why(self) -> ToolboxError:
        """That a hub fails weighs more than that another wants a token, and both more than absence."""
        return telling(self._failures)


def telling(failures: Sequence[ToolboxError]) -> ToolboxError:
    """Of what several hubs said the one to tell a person."""
    for kinds in ((HubError, CorruptError), (InputError,)):
        for failure in reversed(failures):
            if isinstance(failure, kinds) and not isinstance(failure, NotFoundError):
                return failure
    return failures[0]


def hubs(source: str, settings: Settings, home: Home, environ: Mapping[str, str]) -> list[Source]:
    """The places that `source` names: a hub, a mirror, or with `auto` all that the settings know.

    Raises InputError for a text that names none.
    """
    named = environ.get("MODELSCOPE_ENDPOINT") or environ.get("MODELSCOPE_DOMAIN")
    modelscope = ModelScope(named or settings.modelscope_endpoint, environ, home)
    huggingface = HuggingFace(environ.get("HF_ENDPOINT") or settings.huggingface_endpoint)
    mirrors = filter(None, (mirror.strip() for mirror in settings.mirrors.split(",")))
    if source == "auto":
        return [modelscope, huggingface, *(_mirror(mirror, environ, home) for mirror in mirrors)]
    meant: list[Source] = [hub for hub in (modelscope, huggingface) if hub.name == source]
    return meant or [_mirror(source, environ, home)]


def _mirror(text: str, environ: Mapping[str, str], home: Home) -> Source:
    """`ms::URL` and `hf::URL` speak as that hub does, and get no token; anything else is a folder."""
    prefix, _colons, address = text.rpartition("::")
    if names.HUBS.get(prefix) == "modelscope":
        return ModelScope(address, {}, home, name=text)
    if names.HUBS.get(prefix) == "huggingface" or (not prefix and address.startswith(("http://", "https://"))):
        return HuggingFace(address, name=text, token=False)
    path = Path(text.removeprefix("file://")).expanduser()
    if not prefix and path.is_dir():
        return Folder(path)
    raise InputError(
        _("{name!r} is no place to fetch from.").format(name=text[:120]),
        _("Name auto, modelscope, huggingface, a mirror as hf::https://… or ms::https://…, or a folder of OWNER/NAME."),
    )


def quickest(
    places: Sequence[Source],
    repo: Callable[[Source], Repo],
    wanted: Callable[[Source, Listing], Sequence[Entry]],
    pace: Pace,
    wait_s: float = ANSWER_S,
) -> list[Answer]:
    """The hubs in the order in which to ask them, each tried out at the same time as the others, by really fetching.

    Once one has answered, the others have as long again; who has not answered by then comes after those who have.
    """
    answers: queue.Queue[Answer] = queue.Queue()

    def ask(hub: Source) -> None:
        answers.put(_try_out(hub, repo(hub), wanted, pace))

    for hub in places:
        threading.Thread(target=ask, args=(hub,), daemon=True).start()
    begun = time.monotonic()
    deadline = begun + wait_s
    found: list[Answer] = []
    while len(found) < len(places):
        try:
            found.append(answers.get(timeout=max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            break
        if found[-1].listing:
            now = time.monotonic()
            deadline = min(deadline, now + max(NEAR_S, now - begun))
    silent = [Answer(hub) for hub in places if hub not in [answer.hub for answer in found]]
    return in_order(found, places) + silent + [answer for answer in found if answer.problem]


def in_order(found: Sequence[Answer], places: Sequence[Source]) -> list[Answer]:
    """Those that answered, best first."""
    good = [answer for answer in found if answer.listing]
    best = min((answer.estimate_s for answer in good), default=0.0)

    def rank(answer: Answer) -> tuple[bool, float]:
        near = answer.estimate_s <= best * NEAR + NEAR_S
        return (False, places.index(answer.hub)) if near else (True, answer.estimate_s)

    return sorted(good, key=rank)


def told(answers: Sequence[Answer]) -> str:
    """How fast each hub was, for the person; empty where nothing was measured."""
    return ", ".join(
        _("{hub} {size}/s").format(hub=answer.hub.title, size=units.size(answer.bytes_per_s))
        for answer in answers
        if answer.bytes_per_s
    )


def _try_out(hub: Source, repo: Repo, wanted: Callable[[Source, Listing], Sequence[Entry]], pace: Pace) -> Answer:
    begun = time.monotonic()
    try:
        listing = hub.listing(repo)
        entries = wanted(hub, listing)
        size = sum(entry.size for entry in entries)
        if size < WORTHWHILE:
            return Answer(hub, listing, estimate_s=time.monotonic() - begun)
        speed = _sample(hub, msgspec.structs.replace(repo, revision=listing.revision), entries, pace)
    except ToolboxError as error:
        return Answer(hub, problem=error)
    except BrokenOffError as error:
        return Answer(hub, problem=unreachable(hub, error))
    return Answer(hub, listing, None, speed, time.monotonic() - begun + size / speed)


def _sample(hub: Source, repo: Repo, entries: Sequence[Entry], pace: Pace) -> float:
    """Bytes a second, from the first byte on, of the beginning of the largest file; no more than `pace` allows."""
    largest = max(entries, key=lambda entry: entry.size)
    count = 0
    begun = time.monotonic()
    try:
        with hub.reading(repo) as read, read(largest, 0, min(SAMPLE, largest.size)) as pieces:
            begun = time.monotonic()
            for piece in pieces:
                count += len(piece)
                time.sleep(pace.owed_s(len(piece)))
                if time.monotonic() - begun > SAMPLE_S:
                    break
    except NoRangesError:
        return NO_RANGES
    return count / max(time.monotonic() - begun, 1e-3)
