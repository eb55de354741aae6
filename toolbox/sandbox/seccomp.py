"""The system calls that confined code may make; everything else is refused by the kernel (seccomp, Linux 3.17)."""

import ctypes
import errno
import os
import platform
import struct

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""{machine: (the kernel's name for it, its column in ALLOWED)}."""
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "openat": (257, 56),
    "open": (2, None), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "fsync": (74, 82), "fdatasync": (75, 83), "flock": (73, 32),
    "ftruncate": (77, 46), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "umask": (95, 166),
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "getrandom": (318, 278), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "wait4": (61, 260), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
"""(number on x86_64, on aarch64), from the kernel's unistd.h.

Not among them, on purpose: sockets, fork and exec, kill, ptrace, io_uring, mount and namespaces, bpf, prlimit,
and what changes files without opening them for it (chmod, truncate, utime), which Landlock does not govern.
"""
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_THREAD = 0x10000
COMMANDS = {"fcntl": ((72, 25), (*range(8), 1030)), "ioctl": ((16, 29), (0x5401, 0x5450, 0x5451))}
"""Allowed by their second argument only: F_DUPFD to F_SETLKW and F_DUPFD_CLOEXEC, as with F_SETOWN a pipe would send
signals to other processes; TCGETS (what Python asks of each file), FIONCLEX, FIOCLEX."""

_LOAD, _EQUAL, _ANY_BIT, _RETURN, _AT_LEAST = 0x20, 0x15, 0x45, 0x06, 0x35
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


def apply() -> None:
    """Leave this process, and whatever it becomes, the calls above. Raises OSError where the kernel has no filters."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    code = program(*ARCHITECTURES[machine])
    buffer = ctypes.create_string_buffer(code)
    libc = ctypes.CDLL(None, use_errno=True)
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, None), (_PR_SET_SECCOMP, _FILTER, filters)):
        if libc.prctl(arguments[0], ctypes.c_ulong(arguments[1]), arguments[2], ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def program(architecture: int, column: int) -> bytes:
    """The filter, as BPF: 8 bytes an instruction (operation, jump if true, jump if not, operand)."""
    refuse, allow = (_RETURN, 0, 0, _REFUSE | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL),
    ]  # fmt: skip
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), allow]
    # glibc makes threads with clone3, whose flags lie in memory that no filter sees; told ENOSYS, it takes clone.
    lines += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    lines += [(_EQUAL, 0, 4, CLONE[column]), (_LOAD, 0, 0, _ARGUMENTS), (_ANY_BIT, 0, 1, CLONE_THREAD), allow, refuse]
    for numbers, commands in COMMANDS.values():
        lines += [(_EQUAL, 0, 2 * len(commands) + 2, numbers[column]), (_LOAD, 0, 0, _ARGUMENTS + 8)]
        for command in commands:
            lines += [(_EQUAL, 0, 1, command), allow]
        lines.append(refuse)
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, refuse])
