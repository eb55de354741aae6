"""What is here: GPUs by NVML, Apple's chip, or the processor; never by torch."""

from typing import Literal

import msgspec


class GpuProcess(msgspec.Struct, frozen=True):
    """Something else that runs on a GPU."""

    pid: int
    name: str
    used_bytes: int


class Device(msgspec.Struct, kw_only=True, frozen=True):
    """One thing that can train or serve. Memory is the GPU's own, or the machine's RAM for cpu and mps, in bytes."""

    kind: Literal["cuda", "mps", "cpu"]
    name: str
    index: int = 0
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: str = ""
    """NVIDIA's, as "8.6"; empty elsewhere."""
    bf16: bool
    """Whether bfloat16 arithmetic is native: compute capability 8.0 and more, avx512_bf16 or amx_bf16, Apple M2 and later."""
    cores: int = 0
    processes: tuple[GpuProcess, ...] = ()


class Machine(msgspec.Struct, kw_only=True, frozen=True):
    """Everything `probe` found. `reason` says in a sentence why no GPU is used, where one might be expected."""

    devices: tuple[Device, ...]
    driver: str = ""
    reason: str = ""

    @property
    def best(self) -> Device:
        """The device that work goes to: the GPU with the most free memory, else MPS, else the processor."""
        gpus = [device for device in self.devices if device.kind == "cuda"]
        return max(gpus, key=lambda device: device.memory_free_bytes) if gpus else self.devices[0]
