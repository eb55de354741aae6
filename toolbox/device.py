"""What is here to compute on: GPUs, Apple's chip, or the processor; never by torch. `doctor` shows it."""

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import datasheets, processor
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.processor import text

GIB = 1 << 30
BF16_CAPABILITY = (8, 0)
"""Ampere: the first GPUs with bfloat16 tensor cores (NVIDIA A100 white paper)."""
USABLE_AS_SOLD = 0.937
"""What NVML reports of the memory a GPU is sold with, at worst: an A10 with ECC shows 23028 of 24576 MiB."""
MPS_SHARE = 0.75
"""How much of its memory a Mac lends to the GPU, at most (Metal's recommendedMaxWorkingSetSize)."""
SYSCTL_TIMEOUT_S = 5.0


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


def sysctl(key: str) -> str:
    """macOS' answer to `sysctl -n KEY`; empty where there is none."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, timeout=SYSCTL_TIMEOUT_S, check=False
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
    from toolbox import nvidia  # which makes Devices

    if system == "Darwin arm64":
        return Machine(devices=(_apple(sysctl), _processor(root, sysctl)))
    gpus, driver, reason = nvidia.look(environ, root)
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
    found = (datasheets.specification(name) or datasheets.named(name, memory_gib)) if name else None
    memory_gib = memory_gib or (found.memory_gib if found else None)
    if not found or not memory_gib:
        raise InputError(
            _("The device {name!r} is not known.").format(name=description),
            _("Write NAME:MEMORY, as {examples}; or CPU:16GiB.").format(
                examples=", ".join(f"{item.name}:{item.memory_gib:g}GiB" for item in datasheets.nearest(description))
            ),
        )
    if found.name.startswith("Apple"):
        return _assumed("mps", found.name, memory_gib, "", bf16=not found.name.startswith("Apple M1"))
    capability = found.compute_capability
    made = _assumed("cuda", found.name, memory_gib, capability, bf16=version(capability) >= BF16_CAPABILITY)
    return msgspec.structs.replace(made, power_w=found.power_w or 0.0)


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
