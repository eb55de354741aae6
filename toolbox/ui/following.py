"""Following a run: a live line in a terminal, a plain one now and then without; Ctrl-C saves, twice quits."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import units
from toolbox.errors import InputError, Interrupted, ToolboxError, from_dict
from toolbox.i18n import N_, _
from toolbox.runs import Run, Status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOOK_EVERY_S = 0.2
LINE_EVERY_S = 10.0
REPORT_S = 20.0
"""How long a job that has ended may still write its report before it is no longer waited for."""
_TAIL_BYTES = 8192

Looks = Iterator[tuple[Status, dict[str, Any]]]
"""The status of a run and the newest of its metrics, each time somebody looks."""
METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": (N_("loss {value}"), "{:.4f}".format),
    "reward": (N_("reward {value}"), "{:.3f}".format),
    "eval_loss": (N_("eval loss {value}"), "{:.4f}".format),
    "learning_rate": (N_("lr {value}"), "{:.2e}".format),
    "grad_norm": (N_("grad norm {value}"), "{:.3f}".format),
    "tokens_per_s": (N_("{value} tokens/s"), "{:,.0f}".format),
    "memory_bytes": (N_("memory {value}"), units.size),
}
"""What of a line of metrics.jsonl is shown, how, and in which order."""


def judged(run: Run, status: Status, forced: bool = False) -> Status:
    """`status` where all went well. Raises the job's own error otherwise; `forced`: the person wanted it dead."""
    if status.state == "planned":
        raise InputError(_("{run} was never started.").format(run=run.id), run.command("runs", "reproduce"))
    if status.state not in ("lost", "failed", "interrupted"):
        return status
    error = (
        _lost(run, status, forced) if status.state == "lost" else from_dict(status.error or _unexplained(run, status))
    )
    if isinstance(error, Interrupted) and not error.remedy and status.verb != "serve":
        # Nothing is left that it could go on from.
        again = run.command("runs", "reproduce")
        raise Interrupted(error.message, _("Start it again: {command}").format(command=again))
    if not isinstance(error, Interrupted):
        error.add_note(_("Why, and what to do: {command}").format(command=run.command("runs", "diagnose")))
    raise error


def _lost(run: Run, status: Status, forced: bool) -> ToolboxError:
    """What is said of a job that died without a word of its own."""
    kept = run.has_checkpoint() or status.verb == "evaluate"
    resume = _("Go on with: {command}").format(command=run.command("runs", "resume")) if kept else ""
    if forced:
        return Interrupted(_("{run} was ended at once.").format(run=run.id), resume)
    return ToolboxError(
        _("The job of {run} died without a word (killed, out of memory, or power).").format(run=run.id),
        resume or _("The whole story is in {log}.").format(log=run.log_path),
    )


def _unexplained(run: Run, status: Status) -> dict[str, str]:
    return {"kind": status.state, "message": _("{run} has failed.").format(run=run.id)}


class Asking:
    """While it is entered, SIGINT and SIGTERM ask `run` to save and stop, the second one ends it."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._asked = self._heard = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Asking":
        self._before = {number: signal.signal(number, self._count) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.pass_on()  # what was asked for after the last look

    @property
    def forced(self) -> bool:
        return self._asked > 1

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    def pass_on(self) -> None:
        """Tell the job, again and again until it, when it is young, can hear."""
        asked = self._asked
        if asked > self._heard and self._run.stop(force=asked > 1):
            # Remembered before it is said: who reads it may press once more before the next line is reached.
            first, self._heard = not self._heard, asked
            if first and asked == 1:
                serving = self._run.status().verb == "serve"
                stopping = _("Stopping; Ctrl-C once more to quit at once.")
                self._say(stopping if serving else _("Saving and stopping; Ctrl-C once more to quit at once."))


def looks(run: Run, through_ready: bool, pass_on: Callable[[], None] = lambda: None) -> Looks:
    """The run's status and newest metrics, again and again, until it has ended or is ready."""
    newest = Newest(run.path / "metrics.jsonl")
    while True:
        pass_on()
        status = run.status()
        yield status, newest.line()
        never_started = status.state == "planned" and not run.alive()
        if status.finished or never_started or (status.state == "ready" and not through_ready):
            break
        time.sleep(LOOK_EVERY_S)
    end = time.monotonic() + REPORT_S
    while status.finished and run.alive() and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S / 4)


class Newest:
    """The newest values of metrics.jsonl, read from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None
        self._values: dict[str, Any] = {}

    def line(self) -> dict[str, Any]:
        """Every metric's last value so far; a half-written line waits for the next look."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if self._offset is None or size < self._offset:
                    self._offset = max(0, size - _TAIL_BYTES)
                file.seek(self._offset)
                whole, newline, _rest = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return self._values
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            self._values |= _decoded(line)
        return self._values


def _decoded(line: bytes) -> dict[str, Any]:
    """A line's values; nothing of one that is torn or was entered in its middle."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def metrics_text(metrics: dict[str, Any]) -> list[str]:
    """The metrics as people read them: `loss 1.2345`, `1,234 tokens/s` …"""
    return [
        _(label).format(value=shown(metrics[name]))
        for name, (label, shown) in METRICS.items()
        if isinstance(metrics.get(name), int | float)
    ]


def _progress_text(status: Status) -> str:
    if not status.steps:
        return ""
    left = _("{time} left").format(time=units.duration(status.eta_s)) if status.eta_s is not None else ""
    return " · ".join(filter(None, [f"{status.step}/{status.steps} {status.step / status.steps:.0%}", left]))


def show(looks: Looks, console: "Console", live: bool) -> Status:
    """Show each look at a run, drawn over the one before in a terminal; returns the last status."""
    return (_in_terminal if live else _in_lines)(looks, console)


def _in_lines(looks: Looks, console: "Console") -> Status:
    said, phase, line = float("-inf"), "", ""
    for status, metrics in looks:
        line = " · ".join(filter(None, [status.phase, _progress_text(status), *metrics_text(metrics)]))
        now = time.monotonic()
        due = now - said >= LINE_EVERY_S and status.state != "ready"  # a server that waits has nothing new to say
        if line and (due or status.phase != phase):
            _print(console, line)
            said, phase, line = now, status.phase, ""
    if line:
        _print(console, line)
    return status


def _in_terminal(looks: Looks, console: "Console") -> Status:
    from rich.live import Live

    phases: set[str] = set()
    with Live(console=console, auto_refresh=False) as screen:
        for status, metrics in looks:
            if status.phase and status.phase not in phases:
                phases.add(status.phase)
                _print(console, f"· {status.phase}")
            screen.update(_drawn(status, metrics), refresh=True)
        if not status.steps:
            screen.update("", refresh=True)
    return status


def _drawn(status: Status, metrics: dict[str, Any]) -> "RenderableType":
    """Two lines: how far it is, and how it goes."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if not status.steps:
        return Text("")
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(ProgressBar(total=status.steps, completed=status.step), _progress_text(status))
    return Group(row, Text(" · ".join(metrics_text(metrics)), style="dim"))


def _print(console: "Console", text: str) -> None:
    """A line that the terminal wraps itself, above anything that is drawn."""
    console.print(text, soft_wrap=True)
