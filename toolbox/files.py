"""Files that are there whole or not at all."""

import errno
import fcntl
import glob
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import _

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space or inode is left; this user's share is used up; a file may not grow further (`ulimit -f`)."""


def write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` atomically: a reader sees the old content or the new, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    write_bytes(path, text.encode(), mode)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", mode)


def read_json(path: Path) -> Any | None:
    """The JSON in `path`, or None where the file is absent, torn, or nested deeper than anybody means."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, RecursionError):
        return None


def sha256(path: Path, progress: Callable[[int], None] = lambda size: None) -> str:
    """The file's SHA-256 in hex; `progress` is told the size of each chunk read, in bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    return {path.name: sha256(path) for path in sorted(paths)}


@contextmanager
def whole_file(destination: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A scratch file beside `destination` that becomes it on success and vanishes on failure, for what is streamed.

    Raises FileExistsError when something stands at `destination` already: nothing is overwritten.
    """
    if destination.exists():
        raise FileExistsError(str(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        if destination.exists():
            raise FileExistsError(str(destination))
        os.replace(name, destination)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_tree(folder: Path) -> None:
    """Flush every file below `folder`, and the folders' own entries, to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """A scratch folder beside `destination` that becomes it on success and vanishes on failure.

    One that a killed process left is removed by the next; it is known by its lock, which died with its process.
    Raises FileExistsError when something stands at `destination` already: nothing is overwritten.
    """
    if os.path.lexists(destination):
        raise FileExistsError(str(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    for orphan in destination.parent.glob(f".{glob.escape(destination.name)}.*.part"):
        if (lock := _locked(orphan)) is not None:
            shutil.rmtree(orphan, ignore_errors=True)
            os.close(lock)
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    lock = _locked(scratch)
    try:
        yield scratch
        sync_tree(scratch)
        try:
            scratch.rename(destination)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # another was faster, on the same name
                raise FileExistsError(str(destination)) from error
            raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def is_locked(folder: Path) -> bool:
    """Whether a process is filling that scratch folder of `whole_folder`."""
    if (lock := _locked(folder)) is None:
        return folder.exists()
    os.close(lock)
    return False


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where somebody else does, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def refuse_foreign(path: Path) -> None:
    """Raise InputError where `path` is another user's, or a link: what is kept between starts is read only if it is
    ours."""
    found = path.lstat()
    if found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode):
        raise InputError(
            _("{path} belongs to another user, or is a link, and is not read.").format(path=path),
            _("Delete it; it is made again."),
        )


def taken(path: Path) -> InputError:
    """What to say where something stands at a destination; with a name beside it that is free."""
    return InputError(
        _("{path} is there already, and nothing is overwritten.").format(path=path),
        _("Take a free name, --output {free}, or delete that folder first.").format(
            free=shlex.quote(str(free_path(path)))
        ),
    )


def new_path(chosen: str, usual: Path) -> Path:
    """Where something new is to lie: as `chosen`, else `usual`. Raises InputError where it can't lie there."""
    path = Path(chosen).expanduser().absolute() if chosen else usual
    if os.path.lexists(path):
        raise taken(path)
    try:
        os.lstat(path.with_name(f".{path.name}.12345678.part"))  # whole_folder's name for it is longer
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise InputError(
                _("Nothing can be written at {path}: {reason}.").format(path=path, reason=error.strerror),
                _("Name another folder with --output."),
            ) from error
    return path


def free_path(path: Path) -> Path:
    """`path`, or where something stands there already the first free one of path-2, path-3 …"""
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.parent / f"{path.name}-{number}"
    return free


def size_of(path: Path, counted: set[tuple[int, int]] | None = None) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed.

    A file of several names counts once; `counted`: those that earlier calls counted, and that are added to.
    """
    counted = set() if counted is None else counted
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    total, folders = 0, [os.fspath(path)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # others may be deleting meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    one = (found.st_dev, found.st_ino)
                    total += 0 if one in counted else found.st_size
                    if found.st_nlink > 1:
                        counted.add(one)
    return total


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that `path` is on or would be created on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_full(error: BaseException, numbers: Sequence[int] = FULL) -> bool:
    """Whether an error says that no more can be written; safetensors and tokenizers give the number only in words."""
    return getattr(error, "errno", None) in numbers or any(f"os error {number}" in str(error) for number in numbers)
