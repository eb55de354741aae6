"""The menu's prompts in a terminal: questionary asks for text; the list that takes bare numbers is our own.

questionary's shortcuts are single characters, and this menu has a 10, an 11 and a 12.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from prompt_toolkit import Application
from prompt_toolkit.completion import PathCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style

from toolbox.i18n import _
from toolbox.menu.lists import STYLES, fragments
from toolbox.menu.prompts import Back, Entry, Quit
from toolbox.ui.terminal import plain

SECOND_DIGIT_S = 0.7
"""How long `1` waits to become 10, 11 or 12; Enter ends the wait."""
PATH_BEGINS = ("/", "~", ".")
ESCAPE_S = 0.05
"""How long Escape waits to become an arrow key."""
_STYLE = Style.from_dict(STYLES)

# Over a slow line a terminal answers a cursor position request late, and the answer is read as typed text.
os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")


class TerminalPrompts:
    """Prompts for a person at a terminal, drawn on `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def choose(self, question: str, entries: Sequence[Entry], at: int, footer: str, free: bool = False) -> str:
        """The list under the question; digits choose, so with `free` a path that is begun or pasted is an answer."""
        list_ = _List(plain(question), entries, max(0, at), footer, free)
        application: Application[Entry | str | None] = Application(
            layout=Layout(Window(FormattedTextControl(list_.drawn, focusable=True, show_cursor=False))),
            key_bindings=list_.bindings(),
            style=_STYLE,
            output=create_output(stdout=self._stream),
            erase_when_done=True,
        )
        application.ttimeoutlen = ESCAPE_S
        chosen = application.run()
        if chosen is None:
            raise Back
        if isinstance(chosen, str):
            return self.text(question, "", paths=True, begun=chosen).strip()
        if not chosen.quiet:
            print(f"{list_.question} › {plain(chosen.title)}", file=self._stream, flush=True)
        return chosen.value

    def text(self, question: str, default: str, secret: bool = False, paths: bool = False, begun: str = "") -> str:
        """A line of text, `begun` already typed."""
        import questionary

        asked = questionary.text(
            "›",
            begun,
            qmark=plain(question),
            style=_STYLE,
            output=create_output(stdout=self._stream),
            key_bindings=_back_on_escape(),
            placeholder=None if secret else [("class:note", plain(default))],
            is_password=secret,
            completer=PathCompleter(expanduser=True) if paths else None,
            complete_while_typing=False,
            reserve_space_for_menu=6 if paths else 0,
        )
        asked.application.ttimeoutlen = ESCAPE_S
        try:
            return str(asked.unsafe_ask())
        except (EOFError, KeyboardInterrupt) as gone:
            raise Back from gone

    def pause(self) -> None:
        with suppress(Back):
            if self.text(_("Press Enter to go back to the menu"), "").strip() == "q":
                raise Quit


def _back_on_escape() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", eager=True)
    def _leave(event: KeyPressEvent) -> None:
        event.app.exit(exception=EOFError)

    return bindings


class _List:
    """The entries, the one pointed at, and the digits typed so far."""

    def __init__(self, question: str, entries: Sequence[Entry], at: int, footer: str, free: bool) -> None:
        self.question = question
        self._entries = entries
        self._at = at
        self._footer = footer
        self._free = free
        self._typed = ""
        self._waiting: asyncio.TimerHandle | None = None

    def drawn(self) -> StyleAndTextTuples:
        return [*fragments(self.question, self._entries, self._at, self._footer)]

    def bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        for keys, action in (
            (("up", "k", "c-p", "s-tab"), lambda event: self._move(-1)),
            (("down", "j", "c-n", "tab"), lambda event: self._move(1)),
            (("home", "pageup"), lambda event: self._move(-len(self._entries), wrap=False)),
            (("end", "pagedown"), lambda event: self._move(len(self._entries), wrap=False)),
            (("enter", "c-j", "right"), lambda event: self._leave(event, self._entries[self._at])),
            (("escape", "left", "c-c", "c-d"), lambda event: self._leave(event, None)),
        ):
            for key in keys:
                bindings.add(key, eager=True)(action)
        bindings.add("q")(lambda event: self._leave(event, None, Quit()))
        bindings.add(Keys.BracketedPaste)(lambda event: self._leave(event, event.data) if self._free else None)
        bindings.add(Keys.Any)(self._type)
        return bindings

    def _move(self, by: int, wrap: bool = True) -> None:
        self._forget()
        last = len(self._entries) - 1
        self._at = (self._at + by) % (last + 1) if wrap else min(max(self._at + by, 0), last)

    def _type(self, event: KeyPressEvent) -> None:
        """A key of an entry's name: choose it at once, or wait where a longer one begins like it."""
        typed = self._typed + event.data
        self._forget()
        if typed == "0":
            return self._leave(event, None)
        if self._free and typed in PATH_BEGINS:
            return self._leave(event, typed)
        begun = [entry for entry in self._entries if entry.key.startswith(typed)]
        if not begun:
            return None
        exact = next((entry for entry in begun if entry.key == typed), None)
        if exact and len(begun) == 1:
            return self._leave(event, exact)
        self._typed = typed
        if exact:
            self._at = self._entries.index(exact)
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(SECOND_DIGIT_S, self._leave, event, exact)
        return None

    def _forget(self) -> None:
        self._typed = ""
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None

    def _leave(self, event: KeyPressEvent, answer: Entry | str | None, error: Exception | None = None) -> None:
        self._forget()
        if error:
            event.app.exit(exception=error)
        else:
            event.app.exit(result=answer)
