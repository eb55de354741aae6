"""How much memory and energy the training has taken."""

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from toolbox import power
from toolbox.training import batches
from toolbox.training.rows import Item

ASK_EVERY_S = 2.0
"""How often the driver is asked for the process's memory, at most."""


class Meter:
    """Peak memory in bytes, and energy since it was made.

    cuda: the peak of what torch's allocator handed out since the meter was made (`max_memory_allocated`); the context
    and the libraries' own memory are not in it. mps: the most that Metal held at a step's end. cpu: the process's
    highest resident size, interpreter and libraries included, as in the memory model's `overhead`.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._index = int(device.partition(":")[2] or 0)
        self._peak = self._process = self._tokens = self._labels = 0
        self._asked = -math.inf
        self._begun_bytes = _resident_bytes("VmRSS")
        self._energy = power.Energy(device.partition(":")[0], self._index)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self) -> int:
        """To be called once a step: what has no peak of its own is looked at."""
        self._energy.watt_hours()
        if self._device.startswith("cuda"):
            if time.monotonic() - self._asked >= ASK_EVERY_S:
                self._asked = time.monotonic()
                self._process = max(self._process, power.process_bytes(self._index))
            return torch.cuda.max_memory_allocated(self._device)
        if self._device == "mps":
            self._peak = max(self._peak, torch.mps.driver_allocated_memory())
            return self._peak
        return _resident_bytes("VmHWM")

    def saw(self, micro_batch: Sequence[Item]) -> None:
        """Remember the largest micro-batch of a training step: the peak is of it."""
        tokens = sum(item.size for item in micro_batch)
        if tokens > self._tokens:
            sequences = [sequence for item in micro_batch for sequence in item.sequences]
            self._tokens, self._labels = tokens, batches.label_tokens(sequences)

    def measured(self) -> dict[str, float]:
        """All that is known, for result.json: most bytes allocated, reserved and held by the process as the driver
        counts it (cuda), or the peak (mps, cpu); watt-hours; tokens and labels of the largest micro-batch."""
        peak = "allocated_bytes" if self._device.startswith("cuda") else "peak_bytes"
        found: dict[str, float] = {peak: self.peak_bytes(), "energy_wh": round(self._energy.watt_hours(), 4)}
        found |= {"largest_tokens": self._tokens, "largest_labels": self._labels}
        if self._device.startswith("cuda"):
            found["reserved_bytes"] = torch.cuda.max_memory_reserved(self._device)
            found["process_bytes"] = max(self._process, power.process_bytes(self._index))
        elif self._device == "cpu":
            found["begun_bytes"] = self._begun_bytes
        return {name: value for name, value in found.items() if value}


def _resident_bytes(which: str) -> int:
    """The process's resident size, now (VmRSS) or at its highest (VmHWM); getrusage, used off Linux for both, knows the
    highest only and may include a parent's."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
