"""Putting a copy of a repository together: list, look for room, fetch what is missing, hash everything, publish."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from toolbox import files, units
from toolbox.config import Home, Settings
from toolbox.errors import CorruptError, DoesNotFitError, HubError, NotFoundError, ToolboxError
from toolbox.hub import names, store
from toolbox.hub.sources import PARTIAL, Entry, Listing, Repo, Source, ordered
from toolbox.hub.store import FileRecord, Kind, Manifest
from toolbox.i18n import _

ROUNDS = 3
"""How often a file is fetched whose hash is wrong, or whose address expired on the way."""

SLOW_TO_HASH = 256 << 20
"""From this many bytes on, hashing takes long enough to be shown."""

T = TypeVar("T")
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
    selection = _first(request, lambda hub: _select(hub, request))
    _say_left_out(selection, request)
    return selection


def fetch(request: Request) -> Fetched:
    """A complete, hashed copy of a repository, from the first hub that has it.

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
                return _first(request, lambda hub: _fetch_from(hub, request))
            except (HubError, CorruptError) as error:
                return _already_here(request, error)
    except OSError as error:
        raise _disk_failed(error, request) from error


def _first(request: Request, ask: Callable[[Source], T]) -> T:
    """The answer of the first hub that has one; raises why there is none. That a hub fails weighs more than absence."""
    failures: list[ToolboxError] = []
    manifest = store.read_manifest(request.path)
    before = manifest.source if manifest else ""
    for hub in ordered(request.source, before, request.settings, request.home, os.environ):
        for failure in failures[-1:]:
            request.say(_("{problem} Trying {hub}.").format(problem=failure.message, hub=hub.title))
        try:
            return ask(hub)
        except (NotFoundError, HubError, CorruptError) as error:
            failures.append(error)
    raise next((failure for failure in reversed(failures) if not isinstance(failure, NotFoundError)), failures[0])


def _select(hub: Source, request: Request) -> Selection:
    listing = hub.listing(request.on(hub, request.revision))
    by_path = {names.safe(entry.path): entry for entry in listing.entries}
    wanted, pickles = names.select(by_path, request.include, request.kind)
    names.distinct(wanted, ours=(store.MANIFEST, PARTIAL))
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


def _fetch_from(hub: Source, request: Request, rounds: int = ROUNDS) -> Fetched:
    """Fetch, hash and publish; what went wrong is tried again with a fresh listing and fresh addresses."""
    selection = _select(hub, request)
    if rounds == ROUNDS:
        _say_left_out(selection, request)
    manifest = store.read_manifest(request.path)
    if manifest and _covers(manifest, request.path, selection):
        store.mark_used(request.path, request.home)
        return _fetched(manifest, request.path)
    try:
        return _publish(request, selection.listing, _bring(hub, request, manifest, selection))
    except (HubError, CorruptError):
        if rounds == 1:
            raise
    return _fetch_from(hub, request, rounds - 1)


def _bring(hub: Source, request: Request, manifest: Manifest | None, selection: Selection) -> list[FileRecord]:
    """Every wanted file in the staging folder, hashed. Raises CorruptError where a hash is not the listed one."""
    staging = store.staging(request.path)
    kept = _keep(manifest, staging, selection, request)
    missing = [entry for entry in selection.wanted if entry.path not in kept]
    if missing:
        _look_for_room(request, missing, staging)
        progress = request.progress(request.id, sum(entry.size for entry in missing))
        hub.get(request.on(hub, selection.listing.revision), missing, staging, progress)
    records, wrong = _hash(staging, missing, request)
    for file in wrong:
        raise CorruptError(
            _("{file} of {id} does not have the hash that {hub} lists.").format(
                file=file, id=request.id, hub=hub.title
            ),
            _("The file was thrown away; try again later, or choose another source with --source."),
        )
    return [*kept.values(), *records]


def _covers(manifest: Manifest, path: Path, selection: Selection) -> bool:
    """Whether the copy that is here has every wanted file, as the hub has it now."""
    records = {record.path: record for record in manifest.files}
    return all(
        (record := records.get(entry.path)) is not None
        and _same(record, entry, manifest, selection.listing)
        and record.intact(path)
        for entry in selection.wanted
    )


def _same(record: FileRecord, entry: Entry, manifest: Manifest, listing: Listing) -> bool:
    """Whether a hashed file is the listed one; where the listing has no SHA-256, of the same revision and size."""
    if record.path in manifest.damaged:
        return False
    if entry.sha256:
        return record.sha256 == entry.sha256
    return record.size == entry.size and (manifest.source, manifest.revision) == (listing.source, listing.revision)


def _keep(manifest: Manifest | None, staging: Path, selection: Selection, request: Request) -> dict[str, FileRecord]:
    """Bring into `staging` what need not be fetched: files of the copy that is here, files of a fetch cut off earlier.

    What stands there and is not listed any more is removed. Returns the records of the files kept.
    """
    staging.mkdir(parents=True, exist_ok=True, mode=0o700)
    listed = {entry.path: entry for entry in selection.listing.entries}
    linked: set[str] = set()
    for record in manifest.files if manifest else ():
        entry = listed.get(record.path)
        if manifest and entry and _same(record, entry, manifest, selection.listing) and record.intact(request.path):
            _link(request.path / record.path, staging / record.path)
            linked.add(record.path)
    wanted = {entry.path + PARTIAL for entry in selection.wanted}
    whole: list[Entry] = []
    for file in [file for file in staging.rglob("*") if file.is_symlink() or not file.is_dir()]:
        name = str(file.relative_to(staging))
        entry = None if file.is_symlink() else listed.get(name)
        if entry and file.stat().st_size == entry.size and (entry.hashed or name in linked):
            whole.append(entry)
        elif name not in wanted or file.is_symlink():
            file.unlink()
    records, _wrong = _hash(staging, whole, request)
    return {record.path: record for record in records}


def _link(old: Path, new: Path) -> None:
    """The same file under a second name; where the disk has no such thing, it is fetched again."""
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(old, new)


def _hash(folder: Path, entries: Sequence[Entry], request: Request) -> tuple[list[FileRecord], list[str]]:
    """(records of the files that are as listed, names of those that are not, which are removed)."""
    total = sum(entry.size for entry in entries)
    title = _("Checking {id}").format(id=request.id)
    progress = request.progress(title, total) if total >= SLOW_TO_HASH else lambda size: None
    records: list[FileRecord] = []
    wrong: list[str] = []
    for entry in entries:
        file = folder / entry.path
        sha256, git_sha1 = _digests(file, entry.size, progress)
        if (entry.sha256 and entry.sha256 != sha256) or (entry.git_sha1 and entry.git_sha1 != git_sha1):
            file.unlink()
            wrong.append(entry.path)
            continue
        stat = file.stat()
        records.append(FileRecord(entry.path, stat.st_size, sha256, stat.st_mtime_ns, verified=entry.hashed))
    return records, wrong


def _digests(file: Path, size: int, progress: Callable[[int], None]) -> tuple[str, str]:
    """(SHA-256, git's SHA-1 of a blob) in hex, in one pass."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(files.CHUNK):
            sha256.update(chunk)
            git.update(chunk)
            progress(len(chunk))
    return sha256.hexdigest(), git.hexdigest()


def _look_for_room(request: Request, missing: Sequence[Entry], staging: Path) -> None:
    here = sum(_size(staging / (entry.path + PARTIAL)) for entry in missing)
    needed, free = sum(entry.size for entry in missing) - here, request.free_bytes(staging)
    if needed > free:
        raise DoesNotFitError(
            _("{id} needs {needed} more on the disk of {path}, and {free} are free.").format(
                id=request.id, needed=units.size(needed), path=request.home.path, free=units.size(free)
            ),
            _("Make room (`cache list`, `cache clean`), or name a folder on another disk with --home."),
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


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
        _("Make room (`cache list`, `cache clean`), or name a folder on another disk with --home."),
    )
