"""What a model answered before: an interrupted `evaluate` goes on where it stopped, a repeated one costs nothing."""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from toolbox import files
from toolbox.plan import EvaluatePlan

WEIGHTS = (".safetensors", ".bin", ".json", ".model", ".jinja")
"""Weights, and the settings and words beside them that decide what a model says."""

Item = TypeVar("Item")
Keep = Callable[[Mapping[int, Any]], None]
"""Told the outcomes of each batch by the items' numbers, before anybody else hears of it."""


class Cache:
    """One file, a line an answer, only ever appended to: whoever dies while writing leaves a torn last line, which the
    next one skips. Several may write at once, since each batch is one write at the file's end.

    Without a file it lasts as long as its subject.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._known: dict[str, Any] = {}
        self._torn = False
        self._path = path
        if path and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            for line in file:
                self._torn = not line.endswith(b"\n")
                try:
                    key, value = json.loads(line)
                except (ValueError, TypeError):
                    continue
                self._known[key] = value

    def __len__(self) -> int:
        return len(self._known)

    def put(self, answers: Mapping[str, Any]) -> None:
        """Add answers, in one write that goes to the file's end whoever else writes."""
        self._known |= answers
        if not self._path:
            return
        lines = "".join(json.dumps(pair, separators=(",", ":")) + "\n" for pair in answers.items())
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._path, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(("\n" * self._torn + lines).encode())
        self._torn = False

    def through(
        self,
        keys: Sequence[str],
        items: Sequence[Item],
        work: Callable[[list[Item], Mapping[int, Any], Keep], list[Any]],
    ) -> list[Any]:
        """The outcome of each item, which has a key of the same content; `work(items, known, keep)` finds the others.

        Items that are the same are worked out once.
        """
        first = dict(zip(keys, items, strict=True))
        named = list(dict.fromkeys(keys))
        known = {place: self._known[key] for place, key in enumerate(named) if key in self._known}
        found = work(
            [first[key] for key in named],
            known,
            lambda outcomes: self.put({named[place]: value for place, value in outcomes.items()}),
        )
        by_key = dict(zip(named, found, strict=True))
        return [by_key[key] for key in keys]


def key(ids: Sequence[int], *settings: Any) -> str:
    """The name of an answer: by the exact ids that were asked and all that decides what comes."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(array("q", ids).tobytes())
    return digest.hexdigest()[:40]


def text_key(*asked: Any) -> str:
    """The same of what is asked in words."""
    return key((), *asked)


def of_model(folder: Path, plan: EvaluatePlan, weights: Iterable[Path]) -> Path:
    """The file below `folder` of a model's answers: by its weights' content, and by what they are computed with."""
    stated = {
        "weights": _hashes(folder, weights),
        "computed": [plan.dtype, plan.quantization, plan.BitsAndBytesConfig, plan.device.kind, plan.device.name],
        "by": [torch.__version__, transformers.__version__],
    }
    return folder / f"{text_key(stated)}.jsonl"


def _hashes(folder: Path, weights: Iterable[Path]) -> list[str]:
    """SHA-256 of all files that make a model, which are kept for as long as a file does not change."""
    kept_path = folder / "hashes.json"
    kept = files.read_json(kept_path) or {}
    found = []
    for path in sorted(file for root in weights for file in root.iterdir() if _counts(file)):
        stat = path.stat()
        mark = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if mark not in kept:
            kept[mark] = files.sha256(path)
        found.append(kept[mark])
    files.write_json(kept_path, kept)
    return sorted(found)


def _counts(file: Path) -> bool:
    return file.suffix in WEIGHTS and not file.name.startswith(".")
