"""What a kind of suite is: how its rows are told and read, what is measured on them, and what that shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox.suites.metrics import Metric


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind stands in the module of its name; `toolbox.evaluation.NAME.measure` measures it."""

    name: str
    title: str
    """A few words for people (N_)."""
    shows: str
    """What it does and does not show, in one plain sentence (N_)."""
    paper: str = ""
    """Where its formula is from: authors, title, where it appeared."""
    metrics: dict[str, Metric]
    looks_like: Callable[[Path, bytes, dict[str, Any]], bool]
    """(file, its first bytes unpacked, its first row where that is an object, else {}): by content, never by name."""
    read: Callable[[Path], Sequence[Any]]
    """All rows of a file, checked. Raises InputError naming the first row that can't be used."""
