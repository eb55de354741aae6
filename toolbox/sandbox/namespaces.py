"""A machine of its own for confined code: no network, no other processes, no files but Python's (Linux namespaces)."""

import ctypes
import os
import re
from collections.abc import Sequence

SCRATCH_BYTES, SCRATCH_FILES = 16 << 20, 1024
_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Mount, UTS, IPC, user, pid and network namespaces."""
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT = _RDONLY | _NOSUID | _NODEV | 8
"""Flags of a mount that may not be taken off again, the same in statvfs as in mount."""
_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def enter(root: str, readable: Sequence[str]) -> None:
    """Move this process to a root of its own, `readable` and an empty /tmp alone; its next child is its pid 1.

    `root` is an empty folder. Raises OSError where the machine does not permit it: Docker's and Ubuntu's defaults.
    """
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEW))
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=64k,mode=755")
    for path in readable:
        _put(path, root + path)
    os.mkdir(f"{root}/tmp")
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES}")
    for place in _mounts(root):
        if place != f"{root}/tmp":
            _mount(None, place, None, _REMOUNT | _BIND | _RDONLY | (os.statvfs(place).f_flag & _KEPT))
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."))
    _check(_libc.umount2(b".", _DETACH))
    os.chdir("/tmp")


def _put(path: str, target: str) -> None:
    """Make what lies at `path` visible at `target`."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(path, target, None, _BIND | _REC)


def _mounts(root: str) -> list[str]:
    with open("/proc/self/mountinfo") as lines:
        places = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines]
    return [place for place in places if place == root or place.startswith(f"{root}/")]


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
