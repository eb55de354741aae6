"""Which files confined code may open: Landlock, which needs no privilege and no namespace (Linux 5.13)."""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
READ_FILE, READ_DIR = 1 << 2, 1 << 3
SCRATCH = 0b110_0001_1011_1110
"""Read, write, list, truncate; make and remove plain files and folders; but no device, socket, pipe or link."""
RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""Everything about files that each version governs: what is governed and not granted is refused."""

_libc = ctypes.CDLL(None, use_errno=True)


def apply(readable: Sequence[str], writable: Sequence[str] = ()) -> None:
    """Leave this process `readable` to read and `writable` folders to use, beside what it has open.

    From version 4 on TCP is refused too, from 6 on signals to other processes. Raises OSError without Landlock.
    """
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    governed = RIGHTS[max(known for known in RIGHTS if known <= version)]
    fields = (governed, 0b11, 0b11)[: 3 if version >= 6 else 2 if version >= 4 else 1]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    for paths, rights in ((readable, READ_FILE | READ_DIR), (writable, SCRATCH & governed)):
        for path in paths:
            _allow(ruleset, path, rights)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), None, None, None):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= READ_FILE
    _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    os.close(place)


def _call(number: int, *arguments: int | bytes | None) -> int:
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *plain))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
