"""A file on its way: `NAME.incomplete` beside where it will stand, written by several connections at once.

A large file has parts, and `NAME.incomplete.parts` says how much of each has come: a count is written after the bytes
it counts, so whenever this process is killed, the next one goes on from there. A file of one part is its own count.
The hash is taken in order, right behind the writers, while the bytes are still in memory.
"""

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from toolbox import files
from toolbox.hub.sources import PARTIAL, PARTS, Entry
from toolbox.hub.store import FileRecord

SMALLEST_PART, LARGEST_PART, MANY_PARTS = 4 << 20, 64 << 20, 32
"""A file has about that many parts within these bounds: enough to keep all connections busy to the end, few enough
that asking for the next one costs nothing."""
_COUNT = struct.Struct("<Q")


class Partial:
    """One file; every method may be called from any thread once `open` was called."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.entry = entry
        self.target = folder / entry.path
        self.path = self.target.with_name(self.target.name + PARTIAL)
        self.table = self.target.with_name(self.target.name + PARTS)
        self.part_bytes = part_bytes(entry.size)
        self.parts = max(1, -(-entry.size // self.part_bytes))
        self.whole_only = False
        """The server knows no ranges: one connection brings the file from its beginning."""
        self._mark = hashlib.sha256(f"{entry.identity} {entry.size} {self.part_bytes}".encode()).digest()
        self._come = [0] * self.parts
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._hashed = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)

    def look(self) -> int:
        """Bytes of the file that have come before and count; nothing is opened or changed."""
        self._come = self._counts()
        return sum(self._come)

    def open(self) -> None:
        """Begin, or go on with what is there. Raises OSError."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.look()
        with ExitStack() as opened:
            manner = "r+b" if sum(self._come) else "w+b"
            self._file = opened.enter_context(open(self.path, manner, buffering=0))
            if self.parts > 1:
                counts = b"".join(map(_COUNT.pack, self._come))
                files.write_bytes(self.table, self._mark + counts)
                self._table = opened.enter_context(open(self.table, "r+b", buffering=0))
            self._opened = opened.pop_all()

    def missing(self) -> Iterator[int]:
        """The parts of which something is missing; none for a file that is complete."""
        return (part for part in range(self.parts) if self.span(part))

    def span(self, part: int) -> tuple[int, int] | None:
        """(start, stop) of what is missing of a part, in bytes of the file."""
        start = part * self.part_bytes
        stop = min(start + self.part_bytes, self.entry.size)
        return (start + self._come[part], stop) if start + self._come[part] < stop else None

    def write(self, offset: int, data: bytes) -> int:
        """Put a piece in its place; returns how many of its bytes had not come before. Raises OSError."""
        view = memoryview(data)
        fresh = 0
        while view:
            part, within = divmod(offset, self.part_bytes)
            written = os.pwrite(self._file.fileno(), view[: self.part_bytes - within], offset)
            if within <= self._come[part] < within + written:
                fresh += within + written - self._come[part]
                self._come[part] = within + written
                if self.parts > 1:
                    count = _COUNT.pack(self._come[part])
                    os.pwrite(self._table.fileno(), count, len(self._mark) + part * _COUNT.size)
            offset += written
            view = view[written:]
        return fresh

    def complete(self) -> bool:
        return sum(self._come) == self.entry.size

    def send_whole(self) -> bool:
        """Note that the server knows no ranges; true for the first who notes it."""
        with self._lock:
            first, self.whole_only = not self.whole_only, True
        return first

    def hash_behind(self, wait: bool = False) -> None:
        """Hash what has come without a gap; unless `wait`, not where another connection is at it."""
        if not self._hashing.acquire(blocking=wait):
            return
        try:
            while self._hashed < (end := self._without_gap()):
                chunk = os.pread(self._file.fileno(), min(files.CHUNK, end - self._hashed), self._hashed)
                if not chunk:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._sha256.update(chunk)
                if self.entry.git_sha1:
                    self._git.update(chunk)
                self._hashed += len(chunk)
        finally:
            self._hashing.release()

    def close(self) -> None:
        """Nothing may be written any more: the number of a closed file may soon be another's."""
        self._opened.close()

    def finish(self) -> FileRecord | None:
        """Let the complete file take its name; None where its hash is not the listed one, and it is thrown away."""
        self.hash_behind(wait=True)
        if not self.whole_only:  # else another connection may still hold a piece of it, and the file closes with that
            self.close()
        sha256, entry = self._sha256.hexdigest(), self.entry
        right = sha256 == (entry.sha256 or sha256) and (not entry.git_sha1 or self._git.hexdigest() == entry.git_sha1)
        if right:
            self.path.replace(self.target)
        else:
            self.path.unlink()
        self.table.unlink(missing_ok=True)
        if not right:
            return None
        stat = self.target.stat()
        return FileRecord(entry.path, stat.st_size, sha256, stat.st_mtime_ns, verified=entry.hashed)

    def _without_gap(self) -> int:
        part = self._hashed // self.part_bytes
        while part < self.parts - 1 and self._come[part] == self.part_bytes:
            part += 1
        return part * self.part_bytes + self._come[part] if part < self.parts else self.entry.size

    def _counts(self) -> list[int]:
        nothing = [0] * self.parts
        try:
            size = 0 if self.path.is_symlink() else self.path.stat().st_size
            if self.parts == 1:
                return [size] if self.entry.hashed and size <= self.entry.size else nothing
            table = self.table.read_bytes()
        except OSError:
            return nothing
        length = len(self._mark) + self.parts * _COUNT.size
        if not self.entry.identity or len(table) != length or not table.startswith(self._mark):
            return nothing
        counts = [count for (count,) in _COUNT.iter_unpack(table[len(self._mark) :])]
        ends = (part * self.part_bytes + count for part, count in enumerate(counts) if count)
        fits = max(counts) <= self.part_bytes and max(ends, default=0) <= size
        return counts if fits else nothing


def part_bytes(size: int) -> int:
    """Bytes of a part of a file of `size` bytes: whole MiB."""
    return min(max(size // MANY_PARTS >> 20 << 20, SMALLEST_PART), LARGEST_PART)
