"""How much memory the training has taken."""

import resource
import sys
from pathlib import Path

import psutil
import torch


class Meter:
    """Peak memory in bytes since the meter was made.

    cuda: the peak of what torch's allocator handed out (`max_memory_allocated`). mps: the most that Metal held.
    cpu: the process's highest resident size less its resident size when the meter was made (data read, libraries
    imported, model not loaded yet), so that the interpreter and the libraries don't count.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._peak = 0
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        self._before = psutil.Process().memory_info().rss

    def peak_bytes(self) -> int:
        if self._device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self._device)
        if self._device == "mps":
            self._peak = max(self._peak, torch.mps.driver_allocated_memory())
            return self._peak
        return max(0, _peak_resident_bytes() - self._before)


def _peak_resident_bytes() -> int:
    """The process's highest resident size; getrusage, used off Linux, may include a parent's."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
