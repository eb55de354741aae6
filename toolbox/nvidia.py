"""NVIDIA's GPUs by NVML: which there are, why one can't be used, what runs on them. `device.probe` asks it."""

import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolbox.device import BF16_CAPABILITY, Device, GpuProcess, version
from toolbox.i18n import _
from toolbox.processor import text

NVML_TIMEOUT_S = 5.0
"""A healthy driver answers in milliseconds; one whose GPU hangs may never answer."""
CUDA = (13, 0)
"""The CUDA that the training environment's torch is built for; its driver must speak that version or a later one."""
DRIVER = "580"
"""The first driver branch that speaks CUDA 13.0 (NVIDIA, CUDA compatibility tables)."""
OLDEST_CAPABILITY = (7, 5)
"""Turing: CUDA 13 can no longer compile for older GPUs (CUDA 13.0 release notes)."""

Found = tuple[tuple[Device, ...], str, str]
"""GPUs, driver version, and the reason why there is none or why one is left out."""


def look(environ: Mapping[str, str], root: Path) -> Found:
    """The GPUs of the machine whose file system begins at `root`; within NVML_TIMEOUT_S, so that no menu hangs."""
    answer: queue.Queue[Found] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_found(environ, root)), daemon=True).start()
    try:
        return answer.get(timeout=NVML_TIMEOUT_S)
    except queue.Empty:
        return (), "", _("The NVIDIA driver does not answer: restart this machine.")


def handle(index: int, environ: Mapping[str, str] = os.environ) -> Any | None:
    """NVML's handle of torch's GPU `index`, to be asked until the process ends; None where there is none."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        numbers = list(visible(pynvml, environ.get("CUDA_VISIBLE_DEVICES")))
        return pynvml.nvmlDeviceGetHandleByIndex(numbers[index]) if index < len(numbers) else None
    except pynvml.NVMLError:
        return None


def _found(environ: Mapping[str, str], root: Path) -> Found:
    import ctypes

    try:
        # Asked first without pynvml: importing that costs a third of the menu's start.
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return (), "", _without_library(root)
    import pynvml

    driver = ""
    try:
        pynvml.nvmlInit()
        try:
            driver = pynvml.nvmlSystemGetDriverVersion()
            if _cuda_of_driver(pynvml) < CUDA:
                return (), driver, _old_driver(driver)
            gpus, reasons = _gpus(pynvml, environ)
            if not gpus and not reasons and pynvml.nvmlDeviceGetCount():
                reasons = [_("CUDA_VISIBLE_DEVICES hides every GPU.")]
            return tuple(gpus), driver, " ".join(reasons)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return (), driver, explain(pynvml, error)


def _without_library(root: Path) -> str:
    """Why there is no NVIDIA library, where the machine looks as if there should be one; else empty."""
    if (root / "proc/driver/nvidia/version").exists():
        return _("An NVIDIA driver runs, but this container can't see it: start it with --gpus all.")
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if text(device / "vendor") == "0x10de" and text(device / "class").startswith("0x03"):
            return _("There is an NVIDIA GPU, but no driver: install driver {version} or later.").format(version=DRIVER)
    return ""


def _cuda_of_driver(pynvml: Any) -> tuple[int, int]:
    number = pynvml.nvmlSystemGetCudaDriverVersion()
    return number // 1000, number % 1000 // 10


def _old_driver(driver: str) -> str:
    return _("The NVIDIA driver {driver} is too old for CUDA {cuda}: install driver {version} or later.").format(
        driver=driver, cuda=".".join(map(str, CUDA)), version=DRIVER
    )


def explain(pynvml: Any, error: Exception) -> str:
    """An NVML error as a sentence with what to do."""
    sentences = {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: _("The NVIDIA driver is not loaded: run nvidia-smi as root, or restart."),
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: _(
            "The NVIDIA driver was updated, but the old one still runs: restart this machine."
        ),
        pynvml.NVML_ERROR_GPU_IS_LOST: _("The GPU is lost (it fell off the bus): restart this machine."),
        pynvml.NVML_ERROR_RESET_REQUIRED: _("The GPU must be reset: restart this machine."),
        pynvml.NVML_ERROR_NO_PERMISSION: _("The NVIDIA driver refuses this user: check the rights of /dev/nvidia*."),
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: _old_driver("").replace("  ", " "),
    }
    return sentences.get(getattr(error, "value", None), _("The NVIDIA driver says: {error}.").format(error=error))


def _gpus(pynvml: Any, environ: Mapping[str, str]) -> tuple[list[Device], list[str]]:
    """The usable GPUs in torch's order, and a reason for each that is left out."""
    gpus, reasons = [], []
    for index, number in enumerate(visible(pynvml, environ.get("CUDA_VISIBLE_DEVICES"))):
        try:
            gpu = _gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number), index)
        except pynvml.NVMLError as error:
            reasons.append(f"GPU {number}: {explain(pynvml, error)}")
            continue
        if version(gpu.compute_capability) < OLDEST_CAPABILITY:
            sentence = _("{name} (compute capability {capability}) is too old for CUDA {cuda}.")
            cuda = ".".join(map(str, CUDA))
            reasons.append(sentence.format(name=gpu.name, capability=gpu.compute_capability, cuda=cuda))
            continue
        gpus.append(gpu)
    return gpus, list(dict.fromkeys(reasons))


def visible(pynvml: Any, chosen: str | None) -> Iterator[int]:
    """NVML's numbers of the GPUs that CUDA_VISIBLE_DEVICES lets through, in its order.

    As CUDA reads it (its programming guide): numbers or beginnings of UUIDs; the first that names no GPU ends it.
    """
    count = pynvml.nvmlDeviceGetCount()
    if chosen is None:
        yield from range(count)
        return
    for word in (word.strip() for word in chosen.split(",")):
        if word.isdecimal() and int(word) < count:
            yield int(word)
            continue
        handles = (pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count))
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles] if word.startswith("GPU-") else []
        matching = [number for number, uuid in enumerate(uuids) if uuid.startswith(word)]
        if len(matching) != 1:
            return
        yield matching[0]


def _gpu(pynvml: Any, handle: Any, index: int) -> Device:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Device(
        kind="cuda",
        name=pynvml.nvmlDeviceGetName(handle),
        index=index,
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.free,
        compute_capability=".".join(map(str, capability)),
        bf16=capability >= BF16_CAPABILITY,
        power_w=_power_limit(pynvml, handle),
        processes=tuple(_processes(pynvml, handle)),
    )


def _power_limit(pynvml: Any, handle: Any) -> float:
    """Watts; 0 where the driver does not tell."""
    try:
        return float(pynvml.nvmlDeviceGetPowerManagementLimit(handle)) / 1e3
    except pynvml.NVMLError:
        return 0.0


def _processes(pynvml: Any, handle: Any) -> Iterator[GpuProcess]:
    """What else computes there; nothing where the driver does not tell (old ones, some virtual GPUs)."""
    try:
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return
    for process in running:
        try:
            name = os.path.basename(pynvml.nvmlSystemGetProcessName(process.pid))
        except (pynvml.NVMLError, UnicodeDecodeError):
            name = ""
        yield GpuProcess(pid=process.pid, name=name, used_bytes=process.usedGpuMemory or 0)
