"""The folder in which a copy is put together, `.NAME.part`: what is here already, and what is fetched into it."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from toolbox import files
from toolbox.hub import store
from toolbox.hub.partial import Partial
from toolbox.hub.sources import PARTIAL, PARTS, Entry, Listing, Progress, Read
from toolbox.hub.store import FileRecord, Manifest
from toolbox.hub.transfer import Manner, Transfer

SLOW_TO_HASH = 256 << 20
"""From this many bytes on, hashing takes long enough to be shown."""


class Staging:
    """What has come so far; it outlives a hub that fails, and what is whole is hashed once."""

    def __init__(self, path: Path) -> None:
        self.path = store.staging(path)
        self.received = 0
        """Bytes fetched by this process."""
        self.records: dict[str, FileRecord] = {}
        self._copy = path

    def keep(self, listing: Listing, wanted: Sequence[Entry], checking: Callable[[int], Progress]) -> list[Partial]:
        """Bring in what need not be fetched, of the copy that is here and of a fetch cut off earlier; remove the rest.

        Returns the wanted files that are missing. `checking` is given a number of bytes to hash, if they are many.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        listed = {entry.path: entry for entry in listing.entries}
        linked = self._link(store.read_manifest(self._copy), listing, {entry.path for entry in wanted})
        ours = {entry.path + ending for entry in wanted for ending in (PARTIAL, PARTS)}
        whole: list[Entry] = []
        for file in [file for file in self.path.rglob("*") if file.is_symlink() or not file.is_dir()]:
            name = str(file.relative_to(self.path))
            entry = None if file.is_symlink() else listed.get(name)
            if entry and file.stat().st_size == entry.size and (entry.hashed or name in linked):
                whole.append(entry)
            elif name not in ours or file.is_symlink():
                file.unlink()
        known = self.records
        unknown = [entry for entry in whole if not self._proven(entry)]
        total = sum(entry.size for entry in unknown)
        progress = checking(total) if total >= SLOW_TO_HASH else lambda size: None
        hashed = {entry.path: self._hashed(entry, progress) for entry in unknown}
        found = {entry.path: hashed.get(entry.path, known.get(entry.path)) for entry in whole}
        self.records = {path: record for path, record in found.items() if record}
        return [Partial(self.path, entry) for entry in wanted if entry.path not in self.records]

    def fetch(self, read: Read, missing: Sequence[Partial], manner: Manner, progress: Progress) -> list[str]:
        """Fetch and hash; returns the paths of files whose hash was wrong. Raises BrokenOffError, OSError."""
        transfer = Transfer(read, missing, manner, progress)
        try:
            transfer.run()
        finally:
            self.received += transfer.received
            self.records |= {record.path: record for record in transfer.records}
        return transfer.wrong

    def _link(self, manifest: Manifest | None, listing: Listing, wanted: set[str]) -> set[str]:
        """Second names for files of the copy that is here: what is listed under its name, and what is wanted by hash.

        Where the disk has no such thing, they are fetched again.
        """
        if not manifest:
            return set()
        by_path = {record.path: record for record in manifest.files if record.path not in manifest.damaged}
        by_hash = {record.sha256: record for record in by_path.values()}
        linked = set()
        for entry in listing.entries:
            record = by_path.get(entry.path)
            if not (record and same(record, entry, manifest, listing)):
                record = by_hash.get(entry.sha256) if entry.path in wanted else None
            if record and record.intact(self._copy):
                _link(self._copy / record.path, self.path / entry.path)
                self.records[entry.path] = msgspec.structs.replace(
                    record, path=entry.path, verified=record.verified or record.sha256 == entry.sha256
                )
                linked.add(entry.path)
        return linked

    def _proven(self, entry: Entry) -> bool:
        """Whether this process has hashed the file, and for the same content."""
        record = self.records.get(entry.path)
        return bool(record and entry.sha256 == record.sha256 and record.unchanged(self.path))

    def _hashed(self, entry: Entry, progress: Progress) -> FileRecord | None:
        """The record of a file; None where it is not as listed, and it is removed."""
        file = self.path / entry.path
        sha256, git_sha1 = _digests(file, entry.size, progress)
        if (entry.sha256 and entry.sha256 != sha256) or (entry.git_sha1 and entry.git_sha1 != git_sha1):
            file.unlink()
            return None
        stat = file.stat()
        return FileRecord(entry.path, stat.st_size, sha256, stat.st_mtime_ns, verified=entry.hashed)


def same(record: FileRecord, entry: Entry, manifest: Manifest, listing: Listing) -> bool:
    """Whether a hashed file is the listed one; where the listing has no SHA-256, of the same revision and size."""
    if record.path in manifest.damaged:
        return False
    if entry.sha256:
        return record.sha256 == entry.sha256
    return record.size == entry.size and (manifest.source, manifest.revision) == (listing.source, listing.revision)


def _link(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(old, new)


def _digests(file: Path, size: int, progress: Progress) -> tuple[str, str]:
    """(SHA-256, git's SHA-1 of a blob) in hex, in one pass."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(files.CHUNK):
            sha256.update(chunk)
            git.update(chunk)
            progress(len(chunk))
    return sha256.hexdigest(), git.hexdigest()
