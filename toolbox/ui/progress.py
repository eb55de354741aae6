"""Progress of bytes: bars in a terminal, a plain line now and then without one."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from toolbox import units
from toolbox.i18n import _

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_EVERY_S = 10.0


class Transfers:
    """The transfers under way, one bar each, drawn together; told of progress from any thread."""

    def __init__(self, console: "Console", live: bool) -> None:
        self._console = console
        self._live = live
        self._lock = threading.Lock()
        self._progress: Progress | None = None

    def add(self, title: str, total_bytes: int) -> Callable[[int], None]:
        """A new transfer; the function returned is told each piece's size in bytes (negative: given up again)."""
        return self._bar(title, total_bytes) if self._live else _Lines(self._console, title, total_bytes)

    def stop(self) -> None:
        """Leave the bars as they are."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress:
            progress.stop()

    def _bar(self, title: str, total_bytes: int) -> Callable[[int], None]:
        with self._lock:
            if self._progress is None:
                self._progress = _progress(self._console)
                self._progress.start()
            progress = self._progress
        task = progress.add_task(title, total=total_bytes or None)

        def advance(count: int) -> None:
            progress.advance(task, count)
            if progress.finished:
                progress.refresh()

        return advance


def _progress(console: "Console") -> "Progress":
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=2)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        get_time=time.monotonic,
    )


class _Lines:
    """The same without a terminal: a line at first, every ten seconds, and at the end."""

    def __init__(self, console: "Console", title: str, total_bytes: int) -> None:
        self._console, self._title, self._total = console, title, total_bytes
        self._lock = threading.Lock()
        self._done = 0
        self._begun = time.monotonic()
        self._said = float("-inf")

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < LINE_EVERY_S and not (self._total and self._done >= self._total):
                return
            self._said = now
            done, elapsed = self._done, max(now - self._begun, 1e-3)
        share = f"{done / self._total:.0%} · " if self._total else ""
        amount = units.size(done) + (f" / {units.size(self._total)}" if self._total else "")
        speed = _("{size}/s").format(size=units.size(done / elapsed))
        self._console.print(f"{self._title}: {share}{amount} · {speed}", soft_wrap=True)
