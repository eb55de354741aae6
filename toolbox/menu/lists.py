"""A list of entries as styled text; shown at once, before the library that reads the keys is loaded."""

import os
import shutil
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from toolbox.menu.prompts import Entry
from toolbox.ui.terminal import plain
from toolbox.ui.text import cells, pad

NOTE_COLUMN = 60
"""Notes stand in a column behind the titles, no further right than this."""
STYLES = {
    "question": "fg:default bold",
    "qmark": "fg:default bold",
    "pointed": "ansicyan bold",
    "key": "ansicyan",
    "note": "ansibrightblack",
}
_CODES = {"": "", "class:question": "1", "class:pointed": "1;36", "class:key": "36", "class:note": "90"}
"""What prompt_toolkit makes of STYLES."""
IFLAG, LFLAG = 0, 3
"""Places in what termios calls a terminal's attributes."""
Fragments = list[tuple[str, str]]
"""(style class, text), as prompt_toolkit takes them"""


def fragments(question: str, entries: Sequence[Entry], at: int, footer: str) -> Fragments:
    """The question, a line an entry, the footer."""
    width = max(len(entry.key) for entry in entries)
    column = min(max(cells(entry.title) for entry in entries), NOTE_COLUMN)
    drawn: Fragments = [("class:question", question + "\n")]
    for index, entry in enumerate(entries):
        pointed = index == at
        style = "class:pointed" if pointed else ""
        drawn.append(("[SetCursorPosition]", "") if pointed else ("", ""))
        drawn.append((style or "class:key", f" {'❯' if pointed else ' '} {entry.key:>{width}}  "))
        drawn.append((style or ("class:note" if entry.faint else ""), pad(plain(entry.title), column)))
        drawn.append(("class:note", f"  {plain(entry.note)}\n" if entry.note else "\n"))
    return [*drawn, ("class:note", f"   {footer}")]


@contextmanager
def preview(stream: TextIO, drawn: Fragments) -> Iterator[None]:
    """Show the list while what reads the keys is loaded, then go back to its first line, to be drawn over.

    Keys typed meanwhile wait, unechoed: a Ctrl-C is a key of the list too. Nothing is shown where the terminal is too
    small: the way back is counted in lines.
    """
    columns, rows = shutil.get_terminal_size()
    lines = "".join(text for _style, text in drawn).split("\n")
    fits = len(lines) < rows and max(map(cells, lines)) < columns
    before, held = termios.tcgetattr(sys.stdin), termios.tcgetattr(sys.stdin)
    held[IFLAG] &= ~termios.ICRNL
    held[LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, held)
    try:
        if fits:
            shown = "".join(_styled(style, text) for style, text in drawn)
            print(f"{shown}\r\x1b[{len(lines) - 1}A", end="", file=stream, flush=True)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _styled(style: str, text: str) -> str:
    code = "" if os.environ.get("NO_COLOR") else _CODES.get(style, "")
    return f"\x1b[{code}m{text}\x1b[m" if code else text
