"""What a run left behind, as the rules of a diagnosis read it: log, metrics, plan, status, and the kernel's word."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from toolbox import again, config, kernel
from toolbox.facts import Facts, without
from toolbox.runs import FORCED, Run, Status

READ_BYTES = 1 << 20
"""Of a log the end, which says why it ended."""
LINE_CHARS = 300
SHOWN_LINES = 3


class Line(NamedTuple):
    """A line of a log: its place, as `log.txt:213`, and its text."""

    place: str
    text: str

    def __str__(self) -> str:
        text = self.text.strip()
        return f"{self.place}: {text if len(text) <= LINE_CHARS else text[:LINE_CHARS] + '…'}"


class Traces(msgspec.Struct, frozen=True):
    """All that rules look at. Secrets are blotted out of every part."""

    home: Path
    facts: Facts
    lines: tuple[Line, ...] = ()
    """What the last start wrote, but for the sentence it ended with: that may repeat words of the data."""
    kernel_lines: tuple[str, ...] = ()
    oom_kills: int = 0
    """Processes that the kernel killed for memory since the start, in this control group."""
    restarted: bool = False
    """Whether the machine was started anew since."""
    alive: bool = False

    @classmethod
    def of(cls, run: Run) -> "Traces":
        """Those of a run, as of now."""
        facts = Facts.of(run)
        then, now = facts.status.boot or kernel.Boot(), kernel.boot()
        restarted = bool(then.id and now.id != then.id)
        same = bool(then.id) and not restarted
        return cls(
            home=run.path.parents[1],
            facts=facts,
            lines=tuple(_told(run, facts)),
            kernel_lines=tuple(kernel.log(then.uptime_s)) if same else (),
            oom_kills=max(0, now.oom_kills - then.oom_kills) if same else 0,
            restarted=restarted,
            alive=run.alive(),
        )

    @classmethod
    def of_file(cls, log: Path, home: Path) -> "Traces":
        """Those of a failure of which there is only a log: crash.txt, an engine's, another program's."""
        status = Status(state="failed")
        facts = Facts(run=Run(log.parent), plan={}, status=status, env={}, result={}, metrics=[])
        return cls(home=home, facts=facts, lines=tuple(_lines(log, 0, facts)))

    @property
    def status(self) -> Status:
        return self.facts.status

    @property
    def verb(self) -> str:
        return self.facts.verb

    @property
    def error(self) -> dict[str, str]:
        return self.status.error or {}

    @property
    def training(self) -> dict[str, Any]:
        """The numbers of the training loop; empty for other work."""
        found = self.facts.plan.get("training")
        return found if isinstance(found, dict) else {}

    def ended_with(self, *kinds: str) -> list[str]:
        """As evidence, the sentence that the job ended with, where it is of one of these kinds."""
        if self.error.get("kind") not in kinds:
            return []
        return [str(Line("status.json", self.error.get("message", "")))]

    def said(self, pattern: str, ignore_case: bool = False) -> list[str]:
        """As evidence, the lines in which `pattern` is found: the first ones, each text once."""
        sought = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        found = {line.text.strip(): line for line in reversed(self.lines) if sought.search(line.text)}
        return [str(line) for line in reversed(found.values())][:SHOWN_LINES]

    def of_kernel(self, pattern: str) -> list[str]:
        """As evidence, lines of the kernel's log since the start."""
        return [f"dmesg: {line}" for line in self.kernel_lines if re.search(pattern, line)][-SHOWN_LINES:]

    def last_words(self) -> list[str]:
        """The end of the log, where nothing else is known."""
        told = [line for line in self.lines if line.text.strip() and not line.text.startswith(("  File ", "    "))]
        return [str(line) for line in told[-SHOWN_LINES:]]

    @property
    def forced(self) -> list[str]:
        return self.said(re.escape(FORCED))

    def command(self, *words: str) -> str:
        return config.command_line(self.home, *words)

    def on_run(self, *words: str) -> str:
        return self.command(*words, self.facts.run.id)

    def once_more(self, *settings: str, **training: Any) -> str:
        """The command that does the same with other numbers; `training`: fields of that block, None: decided anew."""
        if not self.facts.plan:
            return ""
        changed = {name: value for name, value in {**self.training, **training}.items() if value is not None}
        return self.command(*again.words(self.verb, {**self.facts.plan, "training": changed}, settings))

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.facts.run.path).free


def _told(run: Run, facts: Facts) -> Iterator[Line]:
    """The logs of the last start, without the sentence that status.json has too."""
    own = {part.strip() for text in (facts.status.error or {}).values() for part in text.splitlines()}
    for line in _lines(run.log_path, facts.status.log_from, facts):
        if line.text.strip() not in own:
            yield line
    yield from _lines(run.path / "engine.log", 0, facts)


def _lines(path: Path, begin: int, facts: Facts) -> Iterator[Line]:
    """The lines of a file from a byte on, of a long one the last, with their numbers."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            begin = begin if begin <= end else 0
            begin = max(begin, end - READ_BYTES)
            number = 1 + _newlines(file, begin)
            file.seek(begin)
            text = file.read().decode(errors="replace")
    except OSError:
        return
    for place, line in enumerate(text.replace("\r", "\n").split("\n") if text else [], start=number):
        yield Line(f"{path.name}:{place}", without(line, facts.secrets))


def _newlines(file: Any, end: int) -> int:
    """How many lines end before a byte of an open file."""
    file.seek(0)
    count = 0
    while (here := file.tell()) < end:
        count += file.read(min(1 << 20, end - here)).count(b"\n")
    return count
