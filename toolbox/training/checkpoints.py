"""Checkpoints: each complete or absent, verified before it is read, and never a pickle."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from toolbox import files
from toolbox.errors import CorruptError, DiskError, ToolboxError, lacks_memory
from toolbox.i18n import _

MARKER = "complete.json"
"""Written last: {"files": {name: SHA-256}}. A folder without it, or that differs from it, is no checkpoint."""
NAME = re.compile(r"checkpoint-(\d+)")


def save(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make the checkpoint of `step` in `folder` from what `write` puts into the scratch folder given to it.

    Older ones are removed only once the new one is complete on the disk. Raises ToolboxError where it can't be saved;
    the older ones are then untouched.
    """
    destination = folder / f"checkpoint-{step}"
    if destination.exists():
        if complete(destination):  # of a run that was stopped again before its next step: it may be the only one
            return destination
        _discard(destination)
    try:
        with files.whole_folder(destination) as scratch:
            write(scratch)
            hashes = files.hashes(scratch.iterdir())
            files.sync_tree(scratch)
            files.write_json(scratch / MARKER, {"files": hashes})
    except (OSError, SafetensorError) as error:
        if lacks_memory(error):
            raise
        raise _unsaved(step, error) from error
    for older in _all(folder):
        if older != destination:
            _discard(older)
    return destination


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; scratch folders that a killed process left behind are removed."""
    if not folder.is_dir():
        return None
    for leftover in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
        shutil.rmtree(leftover)
    for path in _all(folder):
        if complete(path):
            return path
        print(_("{path} is torn and is left out.").format(path=path), flush=True)
    return None


def complete(path: Path) -> bool:
    """Whether a checkpoint holds exactly the files that its marker lists, each with its hash."""
    marker = files.read_json(path / MARKER)
    hashes: Any = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(hashes, dict) or {entry.name for entry in path.iterdir()} != {MARKER, *hashes}:
        return False
    return all(files.sha256(path / name) == expected for name, expected in hashes.items())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever is wrong with a checkpoint's content into CorruptError; hashes tell tearing, not who wrote it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if lacks_memory(error):
            raise
        raise CorruptError(
            _("The checkpoint {path} can't be read: {reason}.").format(path=path, reason=error),
            _("Delete it and start the run again."),
        ) from error


def step_of(path: Path) -> int:
    """The step that a checkpoint was made after."""
    return int(path.name.rpartition("-")[2])


def _all(folder: Path) -> list[Path]:
    """Whatever is named like a checkpoint, newest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def _discard(path: Path) -> None:
    """Remove a checkpoint: out of sight by one rename first, so that half of one is never seen."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _unsaved(step: int, error: Exception) -> ToolboxError:
    reason = getattr(error, "strerror", None) or str(error)
    if files.is_full(error, [errno.ENOSPC]):
        reason = _("the disk is full")
    return (DiskError if files.is_full(error) else ToolboxError)(
        _("The checkpoint of step {step} can't be saved: {reason}.").format(step=step, reason=reason),
        _("Free some disk space and resume: the checkpoint before it is intact."),
    )
