"""What the kernel tells of a run's end: this boot, processes killed for memory, its log. `runs diagnose` asks."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from toolbox.processor import cgroups, text

LOG = Path("dev/kmsg")
RECORD = re.compile(r"\d+,\d+,(\d+),[^;]*;(.*)")
"""A record of /dev/kmsg: priority, number, microseconds since the boot, flags; its text (Linux, ABI: dev-kmsg)."""
LONGEST_RECORD = 8192
MOST_RECORDS = 100_000


class Boot(msgspec.Struct, frozen=True):
    """The machine as a start of a run found it."""

    id: str = ""
    """Another one: the machine was started anew since. Empty where the system does not tell."""
    uptime_s: float = 0.0
    oom_kills: int = 0
    """Processes of this control group that the kernel has killed for memory so far."""


def boot(root: Path = Path("/")) -> Boot:
    return Boot(text(root / "proc/sys/kernel/random/boot_id"), time.monotonic(), oom_kills(root))


def oom_kills(root: Path = Path("/")) -> int:
    """The counter `oom_kill` of this process' control group and those above it, whichever counts most."""
    counters = (group / name for group in cgroups(root) for name in ("memory.events", "memory.oom_control"))
    found = (re.search(r"^oom_kill (\d+)$", text(counter), re.MULTILINE) for counter in counters)
    return max((int(match[1]) for match in found if match), default=0)


def log(since_s: float, root: Path = Path("/")) -> list[str]:
    """The kernel's messages since `since_s` seconds after the boot; none where this user may not read them."""
    records = (RECORD.match(record) for record in _records(root / LOG))
    return [match[2] for match in records if match and int(match[1]) / 1e6 >= since_s]


def _records(path: Path) -> Iterator[str]:
    """The first lines of all records that are there now; a read gives one record and never waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        for _number in range(MOST_RECORDS):
            try:
                record = os.read(descriptor, LONGEST_RECORD)
            except BrokenPipeError:  # overwritten meanwhile: the next read goes on behind it
                continue
            except OSError:
                return
            if not record:
                return
            yield from (line for line in record.decode(errors="replace").splitlines() if not line.startswith(" "))
    finally:
        os.close(descriptor)
