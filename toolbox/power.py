"""Energy that a job draws: NVML's counter of a GPU, or RAPL's of the processors, as far as this user may read them."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import nvidia
from toolbox.processor import text

RAPL = "sys/class/powercap"
"""Linux' energy counters, a folder a processor package; since 5.10 only root may read them (CVE-2020-8694)."""


class _Counter(msgspec.Struct):
    joules: Callable[[], float]
    """So far."""
    range_joules: float = math.inf
    """At which it begins at 0 again."""
    last: float = 0.0


class Energy:
    """Energy since it was made, of the whole device: what else runs on it is in it."""

    def __init__(self, kind: str, index: int = 0, root: Path = Path("/")) -> None:
        self._counters = _of_gpu(index) if kind == "cuda" else _of_processors(root) if kind == "cpu" else []
        self._joules = 0.0
        for counter in self._counters:
            counter.last = counter.joules()

    def watt_hours(self) -> float:
        """So far; 0 where it is not known. To be called once a step: a counter may run over, within minutes at most."""
        for counter in self._counters:
            now = counter.joules()
            self._joules += now - counter.last + (counter.range_joules if now < counter.last else 0)
            counter.last = now
        return self._joules / 3600


class _Integrated:
    """Joules of a device that tells watts only, by the trapezoids between the calls."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts, self._joules = watts, 0.0
        self._seen, self._last = time.monotonic(), watts()

    def __call__(self) -> float:
        now, watts = time.monotonic(), self._watts()
        self._joules += (watts + self._last) / 2 * (now - self._seen)
        self._seen, self._last = now, watts
        return self._joules


def _of_gpu(index: int) -> list[_Counter]:
    """NVML's counter, from Volta on; where it does not tell, as on some virtual GPUs, its power is integrated."""
    handle = nvidia.handle(index)
    if handle is None:
        return []
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return [_Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)]
    with contextlib.suppress(pynvml.NVMLError):
        return [_Counter(_Integrated(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3))]
    return []


def _of_processors(root: Path) -> list[_Counter]:
    """RAPL's, of every package; none where one can't be read."""
    packages = [path for path in sorted((root / RAPL).glob("*-rapl:*")) if path.name.count(":") == 1]
    counters = [
        _Counter(lambda file=path / "energy_uj": float(text(file) or 0) / 1e6, _range_joules(path))  # type: ignore[misc]
        for path in packages
    ]
    return counters if all(text(path / "energy_uj") for path in packages) else []


def _range_joules(package: Path) -> float:
    return float(text(package / "max_energy_range_uj") or 0) / 1e6


def process_bytes(index: int) -> int:
    """Memory of torch's GPU `index` that the driver counts as this process's; 0 where it does not tell."""
    handle = nvidia.handle(index)
    if handle is None:
        return 0
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        running: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return next((process.usedGpuMemory or 0 for process in running if process.pid == os.getpid()), 0)
    return 0
