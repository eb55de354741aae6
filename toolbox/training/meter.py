"""How much memory the training has taken."""

import resource
import sys
from pathlib import Path

import torch


class Meter:
    """Peak memory in bytes.

    cuda: the peak of what torch's allocator handed out since the meter was made (`max_memory_allocated`); the context
    and the libraries' own memory are not in it. mps: the most that Metal held at a step's end. cpu: the process's
    highest resident size, interpreter and libraries included, as in the memory model's `overhead`.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._peak = 0
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self) -> int:
        if self._device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self._device)
        if self._device == "mps":
            self._peak = max(self._peak, torch.mps.driver_allocated_memory())
            return self._peak
        return _peak_resident_bytes()


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
