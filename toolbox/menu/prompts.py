"""How the menu asks: by keys in a terminal, by plain lines without one."""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from toolbox.i18n import _
from toolbox.ui.terminal import plain

CATALOGUE = "\0catalogue"
"""The value of the entry that opens the catalogue of models; no typed text can be it."""


class Back(Exception):
    """The person went back: `0`, Escape, Ctrl-C, Ctrl-D, or the end of input."""


class Quit(Exception):
    """The person left: `q`."""


class Entry(msgspec.Struct, frozen=True):
    """A line to choose: typing `key` is enough. `note` is shown faintly behind it."""

    key: str
    title: str
    value: str
    note: str = ""
    quiet: bool = False
    """Not said once it is chosen: it only leads to a further question."""
    faint: bool = False
    """Shown dimly: it can be chosen, and nothing much will come of it."""


class Prompts(Protocol):
    """What the menu needs of whatever the person sits at."""

    def choose(self, question: str, entries: Sequence[Entry], at: int, footer: str, free: bool = False) -> str:
        """The value of the entry chosen, the entry at `at` being offered. `free`: any other text is an answer too.

        Raises Back and Quit.
        """

    def text(self, question: str, default: str, secret: bool = False, paths: bool = False) -> str:
        """A line of text; empty where nothing was typed. `paths`: complete file names. Raises Back."""

    def pause(self) -> None:
        """Let the person read before the menu is drawn again."""


class Lines:
    """Without a terminal: numbered lines out, lines in; the end of input goes back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def choose(self, question: str, entries: Sequence[Entry], at: int, footer: str, free: bool = False) -> str:
        self._say(question)
        for entry in entries:
            self._say(f"  {entry.key:>2}  {entry.title}" + (f"  ({entry.note})" if entry.note else ""))
        self._say(footer)
        typed = self._line()
        if not typed and at >= 0:
            return entries[at].value
        if typed in ("0", "q"):
            raise Quit if typed == "q" else Back
        for entry in entries:
            if typed in (entry.key, entry.value):
                return entry.value
        if typed and free:
            return typed
        self._say(_("{typed!r} is none of these.").format(typed=typed))
        return self.choose(question, entries, at, footer, free)

    def text(self, question: str, default: str, secret: bool = False, paths: bool = False) -> str:
        self._say(question + (f" [{default}]" if default and not secret else ""))
        return self._line()

    def pause(self) -> None:
        pass

    def _line(self) -> str:
        line = sys.stdin.readline()
        if not line:
            raise Back
        return plain(line).strip()
