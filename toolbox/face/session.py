"""The Session of a program: what a verb says is printed, its questions are answered with yes."""

import os
from functools import cached_property
from typing import Any, TextIO

from toolbox import i18n, options
from toolbox.config import find_home
from toolbox.ui.terminal import Terminal


class Caller(Terminal):
    """Whoever called from Python; `silent`: nothing is printed."""

    silent = False

    @property
    def stream(self) -> TextIO:
        return self._nowhere if self.silent else super().stream

    @cached_property
    def _nowhere(self) -> TextIO:
        return open(os.devnull, "w")


def open_session(home: str | None = None, silent: bool = False) -> Caller:
    """A session for the home folder that `--home` would name, in the language that the settings say."""
    place = find_home(home)
    chosen = os.environ.get("YCDY_LANG") or place.load_settings().lang
    i18n.use(chosen if chosen in i18n.LANGUAGES else i18n.detect())
    session = Caller(place, place.load_settings(), as_json=False, yes=True, dry_run=False)
    session.silent = silent
    return session


def built(kind: Any, verb: str, given: dict[str, Any]) -> Any:
    """A verb's options object from Python values, checked as the command line checks them. Raises InputError."""
    texts = {name: _texts(value) for name, value in given.items() if value is not None}
    return options.build(kind, texts, {}, verb)


def _texts(value: Any) -> str | list[str]:
    """`value` as it would be typed."""
    if isinstance(value, dict):
        return [f"{key}={item}" for key, item in value.items()]
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)
