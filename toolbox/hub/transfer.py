"""Files on their way from one hub: a bounded number of connections takes one part after the other, each resumed."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from toolbox.hub.partial import Partial
from toolbox.hub.sources import CONNECTIONS, BrokenOffError, NoRangesError, Progress, Read
from toolbox.hub.store import FileRecord

TRIES = 5
"""In a row that bring nothing new, before a hub is given up."""
LINGER_S = 1.0
"""How long connections that are given up may take to end; they write nothing any more."""


class Pace:
    """A bound on bytes a second over all connections; 0: none."""

    def __init__(self, bytes_per_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def owed_s(self, count: int) -> float:
        """How long to wait after `count` bytes, in seconds."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(now, self._free_at) + count / self._rate
            return self._free_at - now


@dataclass(frozen=True)
class Manner:
    """How to fetch."""

    connections: int = CONNECTIONS
    tries: int = TRIES
    pause_s: float = 1.0
    """Times the number of failures in a row: the wait before the next try."""
    pace: Pace = field(default_factory=Pace)


class Transfer:
    """Brings all of `partials`: `records` holds what is whole and right, `wrong` the paths of what was not."""

    def __init__(self, read: Read, partials: Sequence[Partial], manner: Manner, progress: Progress) -> None:
        self.records: list[FileRecord] = []
        self.wrong: list[str] = []
        self.received = 0
        self._read = read
        self._manner = manner
        self._progress = progress
        self._tasks = self._parts(partials)
        self._most = sum(partial.parts for partial in partials)
        self._left: dict[Partial, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Raises BrokenOffError after so many tries that brought nothing new, OSError of the disk."""
        count = min(self._manner.connections, self._most)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        self._working = len(threads)
        try:
            for thread in threads:
                thread.start()
            if threads:
                self._ended.wait()
        finally:
            self._stop.set()
            deadline = time.monotonic() + LINGER_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                for partial in self._left:
                    partial.close()
        if self._error:
            raise self._error

    def _parts(self, partials: Iterable[Partial]) -> Iterator[tuple[Partial, int]]:
        """In order, so that the hash follows close behind; a file is opened when its turn comes."""
        for partial in partials:
            partial.open()
            missing = list(partial.missing())
            self._left[partial] = max(1, len(missing))
            yield from ((partial, part) for part in missing or [0])

    def _next(self) -> tuple[Partial, int] | None:
        with self._lock:
            return next(self._tasks, None)

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and (task := self._next()):
                self._bring(*task)
        except BaseException as error:  # raised again by `run`, in the caller's thread
            self._error = self._error or error
            self._ended.set()
        with self._lock:
            self._working -= 1
            if not self._working:
                self._ended.set()

    def _bring(self, partial: Partial, part: int) -> None:
        """A part, in as many tries as it takes; the last of a file's parts to come finishes the file."""
        try:
            while not partial.whole_only and (span := partial.span(part)) and not self._stop.is_set():
                self._insist(partial, *span, lambda: (partial.span(part) or (span[1],))[0])
        except NoRangesError:
            if partial.send_whole():
                self._bring_whole(partial)
            return
        if partial.whole_only or self._stop.is_set():
            return
        partial.hash_behind()
        with self._lock:
            self._left[partial] -= 1
            last = not self._left[partial]
        if last:
            self._finish(partial)

    def _bring_whole(self, partial: Partial) -> None:
        """A file from its beginning, whatever has come of it: its server knows no ranges."""
        size = partial.entry.size
        self._insist(partial, 0, size, lambda: size if partial.complete() else 0)
        if not self._stop.is_set():
            self._finish(partial)

    def _insist(self, partial: Partial, start: int, stop: int, reached: Callable[[], int]) -> None:
        """Read from `start` to `stop`, after a failure from where `reached` says. Raises BrokenOffError in the end."""
        failures = 0
        while start < stop and not self._stop.is_set():
            try:
                with self._read(partial.entry, start, stop) as pieces:
                    self._take(partial, start, pieces)
            except BrokenOffError as error:
                failures = 1 if reached() > start else failures + 1
                if failures >= self._manner.tries:
                    raise
                self._stop.wait(max(error.wait_s, self._manner.pause_s * (failures - 1)))
            start = reached()

    def _take(self, partial: Partial, offset: int, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            if self._stop.is_set():
                return
            fresh = partial.write(offset, piece)
            offset += len(piece)
            self.received += fresh
            self._progress(fresh)
            if owed_s := self._manner.pace.owed_s(len(piece)):
                self._stop.wait(owed_s)

    def _finish(self, partial: Partial) -> None:
        record = partial.finish()
        if record:
            self.records.append(record)
        else:
            self.wrong.append(partial.entry.path)
