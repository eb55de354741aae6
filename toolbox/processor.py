"""The processor and its memory as this process may use them: affinity, RAM, and a container's limits."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

WIDEST_FIRST = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "avx", "sve2", "sve", "asimd")


def describe(root: Path) -> tuple[str, bool]:
    """(name, whether bfloat16 is native) of the processor; an empty name where the system does not tell."""
    information = text(root / "proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", information, re.MULTILINE)
    bf16 = {"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split() if flags else ())
    return name[1].strip() if name else "", bool(bf16)


def simd(root: Path) -> str:
    """The widest vector instructions, as the processor calls them: they decide in which order sums are taken."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text(root / "proc/cpuinfo"), re.MULTILINE)
    found = set(flags[1].split() if flags else ())
    return next((name for name in WIDEST_FIRST if name in found), "")


def cores(root: Path) -> int:
    """Cores that this process may use: its affinity, and no more than the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in cgroups(root):
        quota, period = [*text(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = text(group / "cpu.cfs_quota_us"), text(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def memory(root: Path) -> tuple[int, int]:
    """(total, free) RAM in bytes that this process may use: /proc/meminfo, and no more than the container's limit."""
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", text(root / "proc/meminfo"), re.MULTILINE))
    total, free = int(rows.get("MemTotal", 0)) * 1024, int(rows.get("MemAvailable", 0)) * 1024
    for group in cgroups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = text(group / limit_name), text(group / used_name)
            if limit.isdecimal() and used.isdecimal() and int(limit) < total:
                # Pages of files that were read count as used but are given back on demand.
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", text(group / "memory.stat"), re.MULTILINE)
                used_bytes = int(used) - int(cached[1] if cached else 0)
                total, free = int(limit), max(0, min(free, int(limit) - used_bytes))
    return total, free


def cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process' control groups, versions 1 and 2, each with its parents, whose limits hold too."""
    mount = root / "sys/fs/cgroup"
    yield from (mount, mount / "memory", mount / "cpu")
    for line in text(root / "proc/self/cgroup").splitlines():
        name = line.rpartition(":")[2].strip("/")
        kinds = line.split(":")[1].split(",") if line.count(":") >= 2 else [""]
        folders = [mount / kind / name for kind in kinds if name and ".." not in name]
        for folder in folders:
            yield from (part for part in (folder, *folder.parents) if mount in part.parents)


def text(path: Path) -> str:
    """A small file's text without its last line's end; empty where it can't be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
