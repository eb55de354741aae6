"""What a kind of suite is: how its rows are told and read, what is measured on them, and what that shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox.suites.metrics import Metric


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind's categories are drawn, before and after (N_ for all texts)."""

    title: str
    axis: str
    domain: tuple[float, float]
    even: float
    """Where nothing leans: a dashed line."""
    ends: tuple[str, str] = ("", "")
    """What lies on the left of it, and on the right."""
    known: str = ""
    """What a tick stands for, where a category brings a value that is known of it."""
    percent: bool = False
    """Whether 0.5 is written 50%."""
    names: dict[str, str] = {}
    """Categories for people; others are called as the file calls them."""


def _itself(path: Path) -> Path:
    return path


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
    written: bool = False
    """What a model writes is enough for it, without likelihoods: any server can be measured by it."""
    local: bool = False
    """Whether no server can be measured by it, even one that tells likelihoods of texts."""
    confined: bool = False
    """Whether it runs what a model wrote, for which there has to be a sandbox."""
    looks_like: Callable[[Path, bytes, dict[str, Any]], bool]
    """(file, its first bytes unpacked, its first row where that is an object, else {}): by content, never by name."""
    read: Callable[[Path], Sequence[Any]]
    """All rows of a file, checked. Raises InputError naming the first row that can't be used."""
    whole: Callable[[Path], Path] = _itself
    """The file that stands for the suite where it is several files: any of them means all."""
    picture: Picture | None = None
    masked: bool = False
    """Whether a masked model (BERT's kind) can be measured with it."""
    folders: bool = False
    """Whether a folder of such files is one suite, as the subjects of MMLU are."""
