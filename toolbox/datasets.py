"""Data sets on this machine: what a file holds, found by looking into it, and its rows as `messages`."""

from pathlib import Path
from typing import Any, Literal

import msgspec


class DatasetSpec(msgspec.Struct, kw_only=True, frozen=True):
    """A data set that was found and read through once: what a plan records of it."""

    name: str
    """As the person names it: `demo-persona`, or a file."""
    path: Path
    format: Literal["messages", "alpaca"]
    rows: int
    sha256: str
    longest_chars: int
    """Characters of the longest row's texts: an upper bound for its tokens before a tokenizer is loaded."""


class Row(msgspec.Struct, frozen=True):
    """One conversation. `number` is its line (JSONL) or its place in the list (JSON), from 1."""

    number: int
    messages: list[dict[str, Any]]
