"""A fake NVML: with this folder on PYTHONPATH, `libnvidia-ml.so.1` is C-callable functions made from $FAKE_NVML.

Everything above the library is real: pynvml's loading, structures and errors. No compiler is needed.
By hand, the menu on a T4:

    FAKE_NVML='{"gpus": [{"name": "Tesla T4", "total_mib": 15360, "capability": [7, 5]}]}' \
        PYTHONPATH=tests/fake_nvml:. python -m toolbox

Keys: driver, cuda (as 13000), init_error and hang_s; a GPU's: name, total_mib, free_mib, capability, uuid, error,
limit_w, power_w, counts_energy, lost_after_s (from the process' start on), processes as [pid, name, mib], where a pid
of 0 is the asking process.
"""

import ctypes
import json
import math
import os
import time
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, cast, memmove
from typing import Any

MIB = 1 << 20
SUCCESS, NOT_SUPPORTED, INSUFFICIENT_SIZE, GPU_IS_LOST = 0, 3, 7, 15
BEGUN = time.monotonic()


class Process(ctypes.Structure):
    """nvmlProcessInfo_t of NVML's version 3."""

    _fields_ = [("pid", c_uint), ("used", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint)]


def exported(*types: Any) -> Any:
    """A method as a C function that returns an NVML status."""
    return lambda method: (CFUNCTYPE(c_int, *types), method)


class Library:
    """The functions that pynvml looks up, by their exported names. A handle is a GPU's index plus one."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.gpus = spec.get("gpus", [])
        for name in dir(type(self)):
            entry = getattr(type(self), name)
            if isinstance(entry, tuple):
                prototype, method = entry
                setattr(self, name, prototype(method.__get__(self)))
        self.nvmlErrorString = CFUNCTYPE(c_char_p, c_int)(lambda code: f"error {code}".encode())

    def text(self, value: str, buffer: int) -> int:
        memmove(buffer, value.encode() + b"\0", len(value.encode()) + 1)
        return SUCCESS

    def number(self, value: int, pointer: int) -> int:
        cast(pointer, POINTER(c_int))[0] = value
        return SUCCESS

    @exported(c_uint)
    def nvmlInitWithFlags(self, flags: int) -> int:
        time.sleep(self.spec.get("hang_s", 0))
        return self.spec.get("init_error", SUCCESS)

    @exported()
    def nvmlShutdown(self) -> int:
        return SUCCESS

    @exported(c_void_p, c_uint)
    def nvmlSystemGetDriverVersion(self, buffer: int, size: int) -> int:
        return self.text(self.spec.get("driver", "580.65.06"), buffer)

    @exported(c_void_p)
    def nvmlSystemGetCudaDriverVersion(self, pointer: int) -> int:
        return self.number(self.spec.get("cuda", 13000), pointer)

    @exported(c_void_p)
    def nvmlDeviceGetCount_v2(self, pointer: int) -> int:
        return self.number(len(self.gpus), pointer)

    @exported(c_uint, c_void_p)
    def nvmlDeviceGetHandleByIndex_v2(self, index: int, pointer: int) -> int:
        cast(pointer, POINTER(c_void_p))[0] = index + 1
        return self.gpus[index].get("error", SUCCESS)

    @exported(c_void_p, c_void_p, c_uint)
    def nvmlDeviceGetName(self, handle: int, buffer: int, size: int) -> int:
        return self.text(self.gpus[handle - 1]["name"], buffer)

    @exported(c_void_p, c_void_p, c_uint)
    def nvmlDeviceGetUUID(self, handle: int, buffer: int, size: int) -> int:
        return self.text(self.gpus[handle - 1].get("uuid", f"GPU-{handle}"), buffer)

    @exported(c_void_p, c_void_p)
    def nvmlDeviceGetMemoryInfo(self, handle: int, pointer: int) -> int:
        gpu = self.gpus[handle - 1]
        if time.monotonic() - BEGUN >= gpu.get("lost_after_s", math.inf):
            return GPU_IS_LOST
        total, free = gpu["total_mib"] * MIB, gpu.get("free_mib", gpu["total_mib"]) * MIB
        memory = cast(pointer, POINTER(c_ulonglong))
        memory[0], memory[1], memory[2] = total, free, total - free
        return SUCCESS

    @exported(c_void_p, c_void_p, c_void_p)
    def nvmlDeviceGetCudaComputeCapability(self, handle: int, major: int, minor: int) -> int:
        first, second = self.gpus[handle - 1]["capability"]
        self.number(first, major)
        return self.number(second, minor)

    @exported(c_void_p, c_void_p)
    def nvmlDeviceGetPowerManagementLimit(self, handle: int, pointer: int) -> int:
        limit_w = self.gpus[handle - 1].get("limit_w")
        return self.number(int(limit_w * 1e3), pointer) if limit_w else NOT_SUPPORTED

    @exported(c_void_p, c_void_p)
    def nvmlDeviceGetPowerUsage(self, handle: int, pointer: int) -> int:
        power_w = self.gpus[handle - 1].get("power_w")
        return self.number(int(power_w * 1e3), pointer) if power_w else NOT_SUPPORTED

    @exported(c_void_p, c_void_p)
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int, pointer: int) -> int:
        gpu = self.gpus[handle - 1]
        if not gpu.get("counts_energy"):
            return NOT_SUPPORTED
        cast(pointer, POINTER(c_ulonglong))[0] = int(1e3 * gpu["power_w"] * (time.monotonic() - BEGUN))
        return SUCCESS

    @exported(c_void_p, c_void_p, c_void_p)
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: int, count: int, array: int) -> int:
        running = self.gpus[handle - 1].get("processes", [])
        self.number(len(running), count)
        if not array:
            return INSUFFICIENT_SIZE if running else SUCCESS
        for place, (pid, _name, mib) in enumerate(running):
            cast(array, POINTER(Process))[place] = Process(pid or os.getpid(), mib * MIB)
        return SUCCESS

    @exported(c_uint, c_void_p, c_uint)
    def nvmlSystemGetProcessName(self, wanted: int, buffer: int, size: int) -> int:
        running = [process for gpu in self.gpus for process in gpu.get("processes", [])]
        return self.text(next(name for pid, name, _mib in running if (pid or os.getpid()) == wanted), buffer)


if "FAKE_NVML" in os.environ:
    library, real = Library(json.loads(os.environ["FAKE_NVML"])), ctypes.CDLL
    ctypes.CDLL = lambda name, *rest, **options: (  # type: ignore[assignment,misc]
        library if name == "libnvidia-ml.so.1" else real(name, *rest, **options)
    )
