"""What is here: GPUs by NVML, Apple's chip, or the processor; never by torch. `doctor` shows it."""

import csv
import importlib.util
import os
import platform
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import processor
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.processor import text

GIB = 1 << 30
NVML_TIMEOUT_S = 5.0
"""A healthy driver answers in milliseconds; one whose GPU hangs may never answer."""
CUDA = (13, 0)
"""The CUDA that the training environment's torch is built for; its driver must speak that version or a later one."""
DRIVER = "580"
"""The first driver branch that speaks CUDA 13.0 (NVIDIA, CUDA compatibility tables)."""
OLDEST_CAPABILITY = (7, 5)
"""Turing: CUDA 13 can no longer compile for older GPUs (CUDA 13.0 release notes)."""
BF16_CAPABILITY = (8, 0)
"""Ampere: the first GPUs with bfloat16 tensor cores (NVIDIA A100 white paper)."""
USABLE_AS_SOLD = 0.937
"""What NVML reports of the memory a GPU is sold with, at worst: an A10 with ECC shows 23028 of 24576 MiB."""

MPS_SHARE = 0.75
"""How much of its memory a Mac lends to the GPU, at most (Metal's recommendedMaxWorkingSetSize)."""


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
    """torch's number of it: the place among the GPUs that CUDA_VISIBLE_DEVICES lets through, in PCI order."""
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: str = ""
    """NVIDIA's, as "8.6"; empty elsewhere."""
    bf16: bool
    """Whether bfloat16 is native: compute capability 8.0 and more, avx512_bf16 or amx_bf16, Apple M2 and later."""
    cores: int = 0
    power_w: float = 0.0
    """What it draws at most: NVML's limit, or the data sheet's; 0: not known."""
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


class Specification(msgspec.Struct, frozen=True):
    """A GPU or Apple chip as its maker describes it (gpus.csv). TFLOPS are dense; None: not known."""

    name: str
    regex: str
    memory_gib: float | None
    bandwidth_gbps: float | None
    bf16_tflops: float | None
    fp16_tflops: float | None
    fp32_tflops: float | None
    compute_capability: str
    power_w: float | None
    """The board's, at most, by its data sheet."""
    basis: str


def sysctl(key: str) -> str:
    """macOS' answer to `sysctl -n KEY`; empty where there is none."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, timeout=NVML_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def probe(
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    system: str = f"{platform.system()} {platform.machine()}",
    sysctl: Callable[[str], str] = sysctl,
) -> Machine:
    """What this machine can compute on, best kind first. Never raises and never hangs: what is broken becomes `reason`.

    `root`, `system` and `sysctl` are where the facts come from; a test passes its own.
    """
    if system == "Darwin arm64":
        return Machine(devices=(_apple(sysctl), _processor(root, sysctl)))
    gpus, driver, reason = _bounded(lambda: _nvidia(environ, root))
    return Machine(devices=(*gpus, _processor(root, sysctl)), driver=driver, reason=reason)


def torch_cuda() -> str:
    """The CUDA that the installed torch is built for, as "13.0"; empty for a CPU build. torch is not imported."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    match = re.search(r"^cuda[^=]*= *'([\d.]+)'", text(folder / "version.py"), re.MULTILINE)
    return match[1] if match else ""


def assume(description: str) -> Device:
    """The device that `description` gives: "NVIDIA A10:24GiB", "A100:80GiB", "Apple M2", "CPU:16GiB".

    The memory may be left out where it is known. Raises InputError naming what is known.
    """
    match = re.fullmatch(r"\s*([^:]+?)\s*(?::\s*(\d+(?:\.\d+)?)\s*G(?:i?B)?\s*)?", description, re.IGNORECASE)
    name, size = (match[1], match[2]) if match else ("", None)
    memory_gib = float(size) if size else None
    if name.lower() == "cpu" and memory_gib:
        return _assumed("cpu", "CPU", memory_gib, "", bf16=False)
    found = (specification(name) or _named(name, memory_gib)) if name else None
    memory_gib = memory_gib or (found.memory_gib if found else None)
    if not found or not memory_gib:
        raise InputError(
            _("The device {name!r} is not known.").format(name=description),
            _("Write NAME:MEMORY, as {examples}; or CPU:16GiB.").format(
                examples=", ".join(f"{item.name}:{item.memory_gib:g}GiB" for item in _nearest(description))
            ),
        )
    if found.name.startswith("Apple"):
        return _assumed("mps", found.name, memory_gib, "", bf16=not found.name.startswith("Apple M1"))
    capability = found.compute_capability
    made = _assumed("cuda", found.name, memory_gib, capability, bf16=version(capability) >= BF16_CAPABILITY)
    return msgspec.structs.replace(made, power_w=found.power_w or 0.0)


def specification(name: str) -> Specification | None:
    """The data sheet of the GPU that NVML, or of the chip that macOS, calls `name`; None where it is not known."""
    return next((item for item in specifications() if re.search(item.regex, name, re.IGNORECASE)), None)


@cache
def specifications() -> tuple[Specification, ...]:
    """All of gpus.csv."""
    with Path(__file__).with_name("gpus.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    texts = ("compute_capability", "basis")
    return tuple(
        msgspec.convert({**row, **{key: row[key] or "" for key in texts}}, Specification, strict=False) for row in rows
    )


def _named(name: str, memory_gib: float | None) -> Specification | None:
    """A GPU all of whose words are in a known name; of several, the one with that memory."""
    asked = _words(name)
    found = [item for item in specifications() if asked and asked <= _words(item.name)]
    return next((item for item in found if item.memory_gib == memory_gib), found[0] if found else None)


def _nearest(name: str) -> list[Specification]:
    known = [item for item in specifications() if item.memory_gib]
    return sorted(known, key=lambda item: -len(_words(name) & _words(item.name)))[:3]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def version(text: str) -> tuple[int, ...]:
    """As (8, 6) of "8.6"."""
    return tuple(int(part) for part in text.split("."))


def _assumed(kind: Any, name: str, memory_gib: float, capability: str, *, bf16: bool) -> Device:
    total = int(memory_gib * GIB)
    usable = MPS_SHARE if kind == "mps" else USABLE_AS_SOLD
    return Device(
        kind=kind, name=name, memory_total_bytes=total, memory_free_bytes=int(total * usable),
        compute_capability=capability, bf16=bf16, cores=1 if kind == "cpu" else 0,
    )  # fmt: skip


_Gpus = tuple[tuple[Device, ...], str, str]
"""GPUs, driver version, and the reason why there is none or why one is left out."""


def _bounded(look: Callable[[], _Gpus]) -> _Gpus:
    """What `look` returns, or a reason where it takes too long: a driver that hangs must not hang the menu."""
    answer: queue.Queue[_Gpus] = queue.Queue()
    threading.Thread(target=lambda: answer.put(look()), daemon=True).start()
    try:
        return answer.get(timeout=NVML_TIMEOUT_S)
    except queue.Empty:
        return (), "", _("The NVIDIA driver does not answer: restart this machine.")


def nvml_handle(index: int, environ: Mapping[str, str] = os.environ) -> Any | None:
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


def _nvidia(environ: Mapping[str, str], root: Path) -> _Gpus:
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


def _apple(sysctl: Callable[[str], str]) -> Device:
    """Apple's GPU, which shares the machine's memory."""
    name = sysctl("machdep.cpu.brand_string") or "Apple"
    total = int(sysctl("hw.memsize") or 0)
    return Device(
        kind="mps",
        name=name,
        memory_total_bytes=total,
        memory_free_bytes=min(_free_ram(), int(total * MPS_SHARE)),
        bf16=not name.startswith("Apple M1"),
    )


def _free_ram() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _processor(root: Path, sysctl: Callable[[str], str]) -> Device:
    total, free = processor.memory(root)
    if not total:
        import psutil

        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
    name, bf16 = processor.describe(root)
    return Device(
        kind="cpu",
        name=name or sysctl("machdep.cpu.brand_string") or platform.machine(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        bf16=bf16,
        cores=processor.cores(root),
    )
