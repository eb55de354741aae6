"""A Session on standard input and output: sentences, tables, questions, progress; rich only where it draws."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec

from toolbox.config import Home, Settings, find_home
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.options import NO, YES
from toolbox.runs import Run, Status
from toolbox.ui import following
from toolbox.ui.text import cells, wrap

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyPressEvent
    from rich.console import Console

    from toolbox.ui.progress import Transfers

NARROW = 20
"""Cells up to which a column of a table is never folded, as dates and sizes: where half a screen holds all of those."""
HEADING = 10
"""Cells up to which a column's heading stays in one line where the table would be too wide."""
BETWEEN = 3
"""Cells that a column takes beside its text."""
PIPE_WIDTH = 200
"""Columns of a table that nobody looks at directly: wide enough that no cell is cut."""
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?(%| [KMGT]?i?B)?|\d+/\d+|")
_FOR_PROGRAMS = re.compile(r"^(`{3,})(?:mermaid|json)\n.*?^\1\n?", re.MULTILINE | re.DOTALL)
"""What stands in a report for a browser to draw or for `runs reproduce` to read: hundreds of lines."""
_CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if code not in (9, 10)}


def plain(text: str) -> str:
    """`text` without control characters: a model's answer or a hub's file name must not steer the terminal."""
    return text.translate(_CONTROLS)


def print_json(result: Any) -> None:
    """The result as one line of JSON, in UTF-8 whatever the locale, as the last line of standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.encode(result, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


class Terminal:
    """The Session of the command line and the menu; under `as_json` people read on standard error."""

    def __init__(self, home: Home, settings: Settings, *, as_json: bool, yes: bool, dry_run: bool) -> None:
        self.home = home
        self.settings = settings
        self.as_json = as_json
        self.yes = yes
        self.dry_run = dry_run
        self.published = False
        self._told_of_tail = False
        self._talk: PromptSession[str] | None = None

    @classmethod
    def open(cls, home: str | None, as_json: bool = False, yes: bool = False, dry_run: bool = False) -> "Terminal":
        """The session for a home folder; settings that can't be read are said aloud, and the defaults hold."""
        place = find_home(home)
        session = cls(place, place.load_settings(), as_json=as_json, yes=yes, dry_run=dry_run)
        if place.settings_torn():
            session.say(_("{path} can't be read; the default settings hold.").format(path=place.path / "settings.json"))
        return session

    @property
    def stream(self) -> TextIO:
        """Where people read."""
        return sys.stderr if self.as_json else sys.stdout

    @property
    def live(self) -> bool:
        """Whether a person watches: lines may be redrawn."""
        return self.stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

    @property
    def interactive(self) -> bool:
        """Whether a person can answer."""
        return sys.stdin.isatty() and self.stream.isatty()

    @cached_property
    def console(self) -> "Console":
        from rich.console import Console

        width = None if self.stream.isatty() else PIPE_WIDTH
        return Console(file=self.stream, markup=False, highlight=False, emoji=False, width=width)

    @cached_property
    def _transfers(self) -> "Transfers":
        from toolbox.ui.progress import Transfers

        return Transfers(self.console, self.live)

    @cached_property
    def _prompt(self) -> "PromptSession[str]":
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        return PromptSession(output=create_output(stdout=self.stream))

    def _talking(self, kept: Path | None) -> "PromptSession[str]":
        """Questions of a conversation: a history of their own, and lines that go on."""
        if self._talk:
            return self._talk
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import create_output

        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        keys.add("c-c")(_drop_line)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept.touch(mode=0o600)
        history = FileHistory(kept) if kept else InMemoryHistory()
        output = create_output(stdout=self.stream)
        self._talk = PromptSession(output=output, history=history, key_bindings=keys, multiline=True)
        return self._talk

    def say(self, text: str) -> None:
        self._settle()
        print(plain(text), file=self.stream, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        self._settle()
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=any(columns))
        widest = [max((cells(row[index]) for row in rows), default=0) for index in range(len(columns))]
        width = self.console.width
        headings = _headings(columns, widest, width)
        narrow = sum(each for each in widest if each <= NARROW) <= width // 2
        taken = [max(each, *map(cells, lines)) + BETWEEN for each, lines in zip(widest, headings, strict=True)]
        whole = [(each <= NARROW and narrow) or (index == 0 and 2 * each <= width) for index, each in enumerate(widest)]
        # Where those that are never folded fill the screen, rich would cut them, units and all.
        folded = sum(each for each, stays in zip(taken, whole, strict=True) if stays) > width
        for index, lines in enumerate(headings):
            numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
            justify: Literal["left", "right"] = "right" if numeric else "left"
            no_wrap = whole[index] and not folded
            shown.add_column(Text(plain("\n".join(lines))), justify=justify, overflow="fold", no_wrap=no_wrap)
        for row in rows:
            shown.add_row(*(Text(plain(cell)) for cell in row))
        if title:
            self.console.print(Text(plain(title), style="bold"))
        self.console.print(shown)
        self.console.print()

    def markdown(self, text: str) -> None:
        self._settle()
        if not self.stream.isatty():
            return self.say(text)
        from rich.markdown import Markdown

        self.console.print(Markdown(_FOR_PROGRAMS.sub("", plain(text))))

    def confirm(self, question: str, default: bool = True) -> bool:
        if self.yes or not self.interactive:
            return True if self.yes else default
        while True:
            answer = self.read(f"{question} [{'Y/n' if default else 'y/N'}] ")
            if answer is None:
                raise Interrupted(_("Interrupted."))
            if (word := answer.strip().lower()) in YES | NO or not word:
                return word in YES if word else default
            self.say(_("Please answer y or n."))

    def read(self, prompt: str) -> str | None:
        self._settle()
        if not self.interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return self._prompt.prompt(plain(prompt))
        except EOFError:
            return None

    def line(self, prompt: str, kept: Path | None) -> str | None:
        if not self.interactive:
            return self.read(prompt)
        self._settle()
        try:
            return self._talking(kept).prompt(plain(prompt), prompt_continuation="… ")
        except EOFError:
            return None

    def write(self, text: str) -> None:
        self._settle()
        self.stream.write(plain(text))
        self.stream.flush()

    def painted(self, pieces: Sequence[tuple[str, str]]) -> None:
        self._settle()
        if not self.console.is_terminal or self.console.no_color:
            return self.say("".join(f"⟦{text}⟧" if style == "learnt" else text for style, text in pieces))
        from rich.text import Text

        styles = {"learnt": "black on green", "special": "magenta"}
        self.console.print(Text.assemble(*((plain(text), styles.get(style, "")) for style, text in pieces)))

    def transfer(self, title: str, total_bytes: int) -> Callable[[int], None]:
        return self._transfers.add(plain(title), total_bytes)

    def follow(self, run: Run, through_ready: bool = False) -> Status:
        self._settle()
        with following.Asking(run, self.say) as asking:
            if run.status().verb != "serve" and not self._told_of_tail:
                self._told_of_tail = True
                again = run.command("runs", "tail")
                self.say(
                    _("The job goes on if this window is closed; to see it again: {command}").format(command=again)
                )
            status = self._show(following.looks(run, through_ready, asking.pass_on))
        return following.judged(run, status, asking.forced)

    def watch(self, run: Run) -> Status:
        self._settle()
        return following.judged(run, self._show(following.looks(run, through_ready=True)))

    def _show(self, looks: following.Looks) -> Status:
        return following.show(looks, self.console, self.live)

    def publish(self, result: dict[str, Any]) -> None:
        self.published = True
        if self.as_json:
            self._settle()
            print_json(result)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._settle()

    def _settle(self) -> None:
        """End a progress bar that is still drawn: what follows must not be drawn over."""
        if "_transfers" in self.__dict__:
            self._transfers.stop()


def _headings(columns: Sequence[str], widest: Sequence[int], width: int) -> list[list[str]]:
    """The lines of each heading: one; where the table is wider than the screen, as many as keep its column narrow."""
    needed = sum(max(cells(column), each) + BETWEEN for column, each in zip(columns, widest, strict=True))
    if needed <= width:
        return [[column] for column in columns]
    return [wrap(column, max(each, HEADING)) for column, each in zip(columns, widest, strict=True)]


def _drop_line(event: "KeyPressEvent") -> None:
    """Ctrl-C, as in a shell: it forgets the line that is being typed; only an empty one it leaves."""
    if event.current_buffer.text:
        event.current_buffer.reset()
    else:
        event.app.exit(exception=KeyboardInterrupt)


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell))
