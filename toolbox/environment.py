"""What a job runs in: versions, hardware, revision, threads; kept in a run's env.json."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from toolbox import __version__, processor

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "modelscope")
ROOT = Path(__file__).parent.parent
CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")


def describe(seed: int) -> dict[str, Any]:
    """Everything that may change a run's numbers, known without importing torch; unknown things are left out."""
    found: dict[str, Any] = {
        "toolbox": __version__,
        "revision": _revision(),
        "image": os.environ.get("YCDY_IMAGE", ""),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": _cpu_name(),
        "simd": processor.simd(Path("/")),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "driver": _driver(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or threads()),
        "seed": seed,
    }
    return {name: value for name, value in found.items() if value not in ("", None)}


def threads() -> int:
    """Threads that arithmetic should use: the physical cores that this process may run on and has a share of."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed, _share(CGROUP_CPUS) or allowed))


def _share(path: Path) -> int | None:
    """Whole processors that a container may use, from cgroup v2's cpu.max: "QUOTA PERIOD" in microseconds, or "max"."""
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _revision() -> str:
    """The git revision of the toolbox where it is a checkout, with + where files differ from it."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _driver() -> str:
    """The version of NVIDIA's kernel driver; empty where there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""
