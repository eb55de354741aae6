"""A copy of a repository: choose a hub, list, look for room, fetch what is missing, publish; go on where one fails."""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from toolbox import files, units
from toolbox.config import Home, Settings
from toolbox.errors import CorruptError, DoesNotFitError, HubError, InputError, NotFoundError, ToolboxError
from toolbox.hub import folder, names, routing, store
from toolbox.hub.partial import Partial
from toolbox.hub.sources import CONNECTIONS, PARTIAL, PARTS, BrokenOffError, Entry, Listing, Repo, Source, unreachable
from toolbox.hub.staging import Staging, same
from toolbox.hub.store import FileRecord, Kind, Manifest
from toolbox.hub.transfer import TRIES, Manner, Pace
from toolbox.i18n import _

TRIES_OF_SEVERAL = 2
"""As `transfer.TRIES`, where another hub can go on."""

CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Nothing may be written: what is here can still be read."""

Progress = Callable[[str, int], Callable[[int], None]]
"""`Session.transfer`: title and total in bytes, to a function that is told each piece's size."""


class Fetched(msgspec.Struct, frozen=True):
    """A complete copy. `verified`: every file has the hash that the hub's listing gives."""

    id: str
    kind: Kind
    path: Path
    source: str
    revision: str
    files: int
    bytes: int
    verified: bool
    unverified: tuple[str, ...] = ()
    """Files for which the listing gave no hash; their sizes are right."""


class Selection(msgspec.Struct, frozen=True):
    """What of a repository is wanted."""

    listing: Listing
    wanted: list[Entry]
    pickles: list[str]
    """Weights left out, because safetensors stand beside them."""

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.wanted)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `free_bytes` and `wait_s` are parameters so that a test can stand in for a full disk."""

    id: str
    also: Mapping[str, str] = {}
    """By hub, the id it has there, where that is known to be another."""
    home: Home
    settings: Settings
    kind: Kind = "model"
    source: str = "auto"
    revision: str = ""
    include: Sequence[str] = ()
    progress: Progress = lambda title, total: lambda size: None
    say: Callable[[str], None] = lambda text: None
    connections: int = CONNECTIONS
    limit_rate: str = ""
    """Bytes a second over all connections, as `units.rate` reads them; empty: what the settings say."""
    pause_s: float = 10.0
    """The first wait where no hub brings anything any more; a tenth of it for a single range. A parameter for tests."""
    free_bytes: Callable[[Path], int] = files.free_bytes
    wait_s: float = store.LOCK_WAIT_S

    @property
    def path(self) -> Path:
        return store.folder(self.home, self.kind, self.id)

    def on(self, hub: Source, revision: str) -> Repo:
        """The repository under the name that it has on `hub`."""
        return Repo(self.kind, self.also.get(hub.name) or self.id, revision)


def look(request: Request) -> Selection:
    """What would be fetched, from the first hub that has it; nothing is changed."""
    names.revision(request.revision)
    failures: list[ToolboxError] = []
    for hub in _hubs(request):
        try:
            selection = _select(hub, request, hub.listing(request.on(hub, request.revision)))
        except (HubError, InputError) as error:
            failures.append(error)
            continue
        _say_left_out(selection, request)
        return selection
    raise routing.telling(failures)


def fetch(request: Request) -> Fetched:
    """A complete, hashed copy of a repository, from the hub that brings it soonest; another goes on where one fails.

    Where no hub can be reached, the copy that is here already. One process at a time works on a repository, another
    waits. Raises NotFoundError, DoesNotFitError before the first byte, BusyError, HubError, CorruptError.
    """
    names.revision(request.revision)
    path = request.path
    request.home.prepare()
    busy = _("Another process is fetching {id}; waiting for it.").format(id=request.id)
    try:
        with store.locked(path, request.wait_s, lambda: request.say(busy)):
            store.recover(path)
            try:
                return _insist(request)
            except (HubError, CorruptError) as error:
                return _already_here(request, error)
    except OSError as error:
        if error.errno in CLOSED:
            return _already_here(request, _disk_failed(error, request))
        raise _disk_failed(error, request) from error


def _insist(request: Request) -> Fetched:
    """Ask one hub after the other, again and again while any brings something new. Raises why there is nothing."""
    staging = Staging(request.path)
    pace = Pace(units.rate(request.limit_rate or request.settings.limit_rate))
    answers = _tried_out(request, pace)
    listings = {answer.hub: answer.listing for answer in answers if answer.listing}
    turns = routing.Turns(answers)
    while hub := turns.hub:
        before = staging.received
        try:
            listing = listings.pop(hub, None) or hub.listing(request.on(hub, request.revision))
            selection = _select(hub, request, listing)
            if turns.begin():
                _say_left_out(selection, request)
            tries = TRIES if turns.alone else TRIES_OF_SEVERAL
            manner = Manner(request.connections, tries, request.pause_s / 10, pace)
            return _fetch_from(hub, request, staging, selection, manner)
        except DoesNotFitError:
            raise
        except (HubError, CorruptError, InputError) as error:
            turns.fail(error, brought=staging.received > before)
            if pause_s := turns.pause * request.pause_s:
                request.say(
                    _("{problem} Trying again in {seconds:.0f} s.").format(problem=error.message, seconds=pause_s)
                )
                time.sleep(pause_s)
            elif turns.hub and turns.hub is not hub:
                request.say(_("{problem} Trying {hub}.").format(problem=error.message, hub=turns.hub.title))
    raise turns.why


def _tried_out(request: Request, pace: Pace) -> list[routing.Answer]:
    """The hubs in the order in which to ask them; last, where nothing is here yet, what other programs fetched."""
    hubs = _hubs(request)
    here = store.read_manifest(request.path)
    if len(hubs) == 1:
        return [routing.Answer(hub) for hub in hubs]
    if here:
        known = [hub for hub in hubs if hub.name == here.source]
        return [routing.Answer(hub) for hub in [*known, *(hub for hub in hubs if hub not in known)]]
    answers = routing.quickest(
        hubs,
        lambda hub: request.on(hub, request.revision),
        lambda hub, listing: _select(hub, request, listing).wanted,
        pace,
    )
    if speeds := routing.told(answers):
        request.say(_("Fetching from {hub}; measured: {speeds}.").format(hub=answers[0].hub.title, speeds=speeds))
    places = folder.caches(os.environ)
    return answers + [routing.Answer(place) for place in places if place.has(request.kind, request.id)]


def _hubs(request: Request) -> list[Source]:
    return routing.hubs(request.source, request.settings, request.home, os.environ)


def _select(hub: Source, request: Request, listing: Listing) -> Selection:
    by_path = {names.safe(entry.path): entry for entry in listing.entries}
    wanted, pickles = names.select(by_path, request.include, request.kind)
    names.distinct(wanted, ours=(store.MANIFEST, PARTIAL, PARTS))
    if not wanted:
        raise NotFoundError(
            _("{hub} has no file in {id} that is asked for.").format(hub=hub.title, id=request.id),
            _("Files: {files}.").format(files=", ".join(sorted(by_path)[:8]) or _("none yet")),
        )
    return Selection(listing, [by_path[path] for path in wanted], pickles)


def _say_left_out(selection: Selection, request: Request) -> None:
    if selection.pickles:
        request.say(
            _("Left out, since loading pickles runs code: {files}.").format(files=", ".join(selection.pickles[:5]))
        )


def _fetch_from(hub: Source, request: Request, staging: Staging, selection: Selection, manner: Manner) -> Fetched:
    """Fetch what is missing, and publish. Raises CorruptError where a hash is not the listed one."""
    manifest = store.read_manifest(request.path)
    if manifest and _covers(manifest, request.path, selection):
        store.mark_used(request.path, request.home)
        return _fetched(manifest, request.path)
    listing = selection.listing
    title = _("Checking {id}").format(id=request.id)
    missing = staging.keep(listing, selection.wanted, lambda total: request.progress(title, total))
    to_come = sum(partial.entry.size - partial.look() for partial in missing)
    wrong: list[str] = []
    if missing:
        _look_for_room(request, to_come)
        if (here := sum(entry.size for entry in selection.wanted) - to_come) and not staging.received:
            request.say(_("{size} of {id} are here already.").format(size=units.size(here), id=request.id))
        missing = _from_caches(request, staging, missing)
        to_come = sum(partial.entry.size - partial.look() for partial in missing)
    if missing:
        try:
            with hub.reading(request.on(hub, listing.revision)) as read:
                wrong = staging.fetch(read, missing, manner, request.progress(request.id, to_come))
        except BrokenOffError as error:
            raise unreachable(hub, error) from error
    for file in wrong:
        raise CorruptError(
            _("{file} of {id} does not have the hash that {hub} lists.").format(
                file=file, id=request.id, hub=hub.title
            ),
            _("The file was thrown away; try again later, or choose another source with --source."),
        )
    return _publish(request, listing, list(staging.records.values()))


def _from_caches(request: Request, staging: Staging, missing: list[Partial]) -> list[Partial]:
    """Take what other programs fetched before, proven by its hash; returns what is still missing."""
    repo = Repo(request.kind, request.id, "")
    for place in folder.caches(os.environ):
        try:
            held = {entry.path: entry for entry in place.listing(repo).entries}
            there = [partial for partial in missing if place.may_be(held.get(partial.entry.path), partial.entry)]
            with place.reading(repo) as read:
                staging.fetch(read, there, Manner(), lambda size: None)
        except (NotFoundError, BrokenOffError):
            continue
        found = [partial for partial in there if partial.entry.path in staging.records]
        if found:
            size = units.size(sum(partial.entry.size for partial in found))
            request.say(_("{files} files ({size}) were in {path} already.").format(
                files=len(found), size=size, path=place.title))  # fmt: skip
        missing = [Partial(staging.path, partial.entry) for partial in missing if partial not in found]
    return missing


def _covers(manifest: Manifest, path: Path, selection: Selection) -> bool:
    """Whether the copy that is here has every wanted file, as the hub has it now."""
    records = {record.path: record for record in manifest.files}
    return all(
        (record := records.get(entry.path)) is not None
        and same(record, entry, manifest, selection.listing)
        and record.intact(path)
        for entry in selection.wanted
    )


def _look_for_room(request: Request, needed: int) -> None:
    free = request.free_bytes(request.path.parent)
    if needed > free:
        raise DoesNotFitError(
            _("{id} needs {needed} more on the disk of {path}, and {free} are free.").format(
                id=request.id, needed=units.size(needed), path=request.home.path, free=units.size(free)
            ),
            _("Make room (`cache list`, `cache clean`), or name a folder on another disk with --home."),
        )


def _publish(request: Request, listing: Listing, records: list[FileRecord]) -> Fetched:
    manifest = Manifest(
        kind=request.kind,
        id=request.id,
        source=listing.source,
        endpoint=listing.endpoint,
        revision=listing.revision,
        files=sorted(records, key=lambda record: record.path),
        fetched_at=time.time(),
    )
    store.write_manifest(store.staging(request.path), manifest)
    store.publish(request.path)
    return _fetched(manifest, request.path)


def _fetched(manifest: Manifest, path: Path) -> Fetched:
    unverified = tuple(record.path for record in manifest.files if not record.verified)
    return Fetched(
        manifest.id, manifest.kind, path, manifest.source, manifest.revision,
        len(manifest.files), manifest.bytes, not unverified, unverified,
    )  # fmt: skip


def _already_here(request: Request, error: ToolboxError) -> Fetched:
    """The copy on this disk, if it still has its hashes. Raises `error` otherwise."""
    manifest = store.read_manifest(request.path)
    if manifest is None or manifest.damaged or request.revision not in ("", manifest.revision):
        raise error
    if not all(record.intact(request.path) for record in manifest.files):
        raise error
    request.say(_("{problem} The verified copy on this disk is used.").format(problem=error.message))
    store.mark_used(request.path, request.home)
    return _fetched(manifest, request.path)


def _disk_failed(error: OSError, request: Request) -> ToolboxError:
    """The sentence for a disk that gives up on the way; what was fetched so far is kept and resumed."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = error.strerror or str(error)
    if full and os.statvfs(request.home.path).f_favail == 0:
        reason = _("it is out of inodes, it holds too many files")
    kind = DoesNotFitError if full else ToolboxError
    return kind(
        _("{path} can't be written: {reason}; {free} are free.").format(
            path=request.home.path, reason=reason, free=units.size(request.free_bytes(request.home.path))
        ),
        _("Make room (`cache list`, `cache clean`), or name a folder on another disk with --home.")
        if full
        else _("Name another one with --home DIR or YCDY_HOME."),
    )
