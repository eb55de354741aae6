"""What was fetched, and where it lies: HOME/models/OWNER/NAME and HOME/datasets/OWNER/NAME.

A folder of that name is complete: it was put together in `.NAME.part` beside it, every file was hashed, the manifest
was written last, and only then was it renamed. So nobody ever reads half a model, whatever was killed when.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from toolbox import files
from toolbox.config import Home
from toolbox.errors import BusyError, InputError
from toolbox.hub import names
from toolbox.i18n import N_, _

Kind = Literal["model", "dataset"]
KINDS: dict[Kind, str] = {"model": N_("model"), "dataset": N_("data set")}
"""What there is to fetch, and its word for people."""
MANIFEST = ".yichuidingyin.json"
LOCK_WAIT_S = 3600.0
"""How long to wait for another process that is fetching the same repository. A dead one holds no lock."""


class FileRecord(msgspec.Struct, frozen=True):
    """A file as it was when its hash was taken."""

    path: str
    size: int
    sha256: str
    mtime_ns: int
    verified: bool
    """Whether the hub's listing gave a hash, which this content has."""

    def unchanged(self, folder: Path) -> bool:
        """Whether size and time are still those of the hashed content; cheap, unlike hashing again."""
        try:
            stat = (folder / self.path).stat()
        except OSError:
            return False
        return stat.st_size == self.size and stat.st_mtime_ns == self.mtime_ns

    def intact(self, folder: Path) -> bool:
        """Whether the content is still the hashed one; hashes only where the time differs, as after `cp`."""
        file = folder / self.path
        return self.unchanged(folder) or (
            file.is_file() and file.stat().st_size == self.size and files.sha256(file) == self.sha256
        )


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`.yichuidingyin.json`: what a folder holds and where it is from. Its own modification time is the last use."""

    kind: Kind
    id: str
    source: str
    endpoint: str
    revision: str
    files: list[FileRecord]
    fetched_at: float
    damaged: list[str] = []
    """Files that `cache verify` found torn; until they are fetched again the copy is not complete."""

    @property
    def bytes(self) -> int:
        return sum(record.size for record in self.files)


class Copy(msgspec.Struct, frozen=True):
    """A folder of the cache. Without a manifest it was not put there by `download`."""

    kind: Kind
    id: str
    path: Path
    manifest: Manifest | None

    @property
    def last_used(self) -> float:
        """Seconds since the epoch."""
        return (self.path / MANIFEST if self.manifest else self.path).stat().st_mtime


def folder(home: Home, kind: Kind, repo_id: str) -> Path:
    """Where a repository lies once it is complete. Raises InputError where `repo_id` is not OWNER/NAME."""
    owner, name = names.repository(repo_id).split("/")
    return root(home, kind) / owner / name


def root(home: Home, kind: Kind) -> Path:
    return home.models if kind == "model" else home.datasets


def staging(path: Path) -> Path:
    """Where the copy that will stand at `path` is put together."""
    return path.with_name(f".{path.name}.part")


def replaced(path: Path) -> Path:
    """Where the copy at `path` stands for the moment in which a newer one takes its place."""
    return path.with_name(f".{path.name}.old")


def owner_of(path: Path) -> Path:
    """The copy that `path` is, or that it was to become: `.NAME.part` and `.NAME.old` belong to NAME."""
    for ending in (".part", ".old"):
        if path.name.startswith(".") and path.name.endswith(ending):
            return path.with_name(path.name[1 : -len(ending)])
    return path


def local_copy(home: Home, kind: Kind, repo_id: str) -> Path | None:
    """The complete copy of a repository on this machine, or None. Sizes are looked at, hashes are not."""
    try:
        path = folder(home, kind, repo_id)
    except InputError:
        return None
    manifest = read_manifest(path)
    if manifest is None or manifest.damaged:
        return None
    for record in manifest.files:
        try:
            if (path / record.path).stat().st_size != record.size:
                return None
        except OSError:
            return None
    return path


def mark_used(path: Path, home: Home) -> None:
    """Note that a model or data set of HOME was used now, for `cache list`; what lies elsewhere is left alone.

    Of what was made here the folder itself carries the time. Where nothing may be written, nothing is noted.
    """
    if path.is_relative_to(home.models) or path.is_relative_to(home.datasets):
        with suppress(OSError):
            os.utime(path / MANIFEST if (path / MANIFEST).is_file() else path)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none, or a torn one."""
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    files.write_json(path / MANIFEST, manifest)


def copies(home: Home) -> list[Copy]:
    """All folders of the cache, models first, by name."""
    return [
        Copy(kind, f"{path.parent.name}/{path.name}", path, read_manifest(path))
        for kind in KINDS
        for path in sorted(root(home, kind).glob("*/*"))
        if path.is_dir() and not path.name.startswith(".") and not path.is_symlink()
    ]


def leftovers(home: Home) -> list[Path]:
    """Downloads that were begun and not ended."""
    found = (path for kind in KINDS for pattern in ("*/.*.part", "*/.*.old") for path in root(home, kind).glob(pattern))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


@contextmanager
def locked(
    path: Path, wait_s: float = LOCK_WAIT_S, waiting: Callable[[], None] = lambda: None, pause_s: float = 0.2
) -> Iterator[None]:
    """Hold the only right to change the copy at `path`; the kernel gives it up when this process ends, however it ends.

    `waiting` is called once if another process has it. Raises BusyError after `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + wait_s
    told = False
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() >= deadline:
            raise BusyError(
                _("{name} is being changed by another process.").format(name=f"{path.parent.name}/{path.name}"),
                _("Wait until it has ended, or end it."),
            )
        if not told:
            waiting()
            told = True
        time.sleep(pause_s)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """A descriptor that holds the lock, or None. A file that its last holder removed meanwhile does not count."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == lock.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def busy(path: Path) -> bool:
    """Whether another process changes the copy at `path`, or puts it together, now."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _try_lock(lock) if lock.is_file() else -1
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)
    return descriptor is None


def publish(path: Path) -> None:
    """Let what was put together take its place at `path`; call it while holding the lock."""
    files.sync_tree(staging(path))
    old = replaced(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    staging(path).rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Undo a replacement that was cut off between its two renames; call it while holding the lock."""
    if not path.exists() and read_manifest(replaced(path)):
        replaced(path).rename(path)
