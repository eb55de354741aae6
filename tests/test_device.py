"""The device probe: real NVML bindings on a fake library, a made-up file system for processors and containers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hardware import A10, T4, V100, with_gpus

from toolbox import datasheets, device, processor
from toolbox.device import GIB, Machine
from toolbox.errors import InputError

PROBE = """
import msgspec, sys
from toolbox import device, nvidia
nvidia.NVML_TIMEOUT_S = {timeout_s}
sys.stdout.buffer.write(msgspec.json.encode(device.probe()))
"""


def probe(*gpus: dict[str, Any], visible: str | None = None, timeout_s: float = 30, **spec: Any) -> Machine:
    """What a fresh process finds with these GPUs."""
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environ |= with_gpus(*gpus, **spec) | ({"CUDA_VISIBLE_DEVICES": visible} if visible is not None else {})
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(timeout_s=timeout_s)],
        env=environ,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Machine)


def test_a_gpu_is_described_by_nvml() -> None:
    machine = probe({**T4, "free_mib": 9000, "processes": [[4711, "/usr/bin/python3", 6000]]})
    gpu = machine.best
    assert (gpu.kind, gpu.name, gpu.compute_capability, gpu.bf16) == ("cuda", "Tesla T4", "7.5", False)
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (15360 << 20, 9000 << 20)
    assert [(process.pid, process.name, process.used_bytes) for process in gpu.processes] == [
        (4711, "python3", 6000 << 20)
    ]
    assert (machine.driver, machine.reason) == ("580.65.06", "")


def test_of_several_gpus_the_emptiest_is_taken() -> None:
    machine = probe({**A10, "free_mib": 500}, T4)
    assert [gpu.index for gpu in machine.devices if gpu.kind == "cuda"] == [0, 1]
    assert (machine.best.name, machine.best.index) == ("Tesla T4", 1)
    assert machine.devices[-1].kind == "cpu"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA A10"]),
        ("1,0", ["NVIDIA A10", "Tesla T4"]),
        ("GPU-bb", ["NVIDIA A10"]),
        ("0,7,1", ["Tesla T4"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str, names: list[str]) -> None:
    machine = probe({**T4, "uuid": "GPU-aa11"}, {**A10, "uuid": "GPU-bb22"}, visible=visible)
    gpus = [gpu for gpu in machine.devices if gpu.kind == "cuda"]
    assert [gpu.name for gpu in gpus] == names
    assert [gpu.index for gpu in gpus] == list(range(len(names)))
    assert bool(machine.reason) == (not names)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"init_error": 18}, "restart"),
        ({"init_error": 9}, "not loaded"),
        ({"init_error": 999}, "Unknown Error"),
        ({"init_error": 13}, "too old"),
        ({"cuda": 12040, "driver": "550.54.15"}, "550.54.15"),
    ],
)
def test_a_broken_or_old_driver_is_a_reason(spec: dict[str, Any], words: str) -> None:
    machine = probe(T4, **spec)
    assert machine.best.kind == "cpu"
    assert words in machine.reason


def test_a_lost_gpu_leaves_the_other() -> None:
    machine = probe({**A10, "error": 15}, T4)
    assert machine.best.name == "Tesla T4"
    assert "lost" in machine.reason


def test_a_gpu_too_old_for_cuda_13_is_left_out() -> None:
    machine = probe(V100)
    assert machine.best.kind == "cpu"
    assert "V100" in machine.reason


def test_a_driver_that_hangs_does_not_hang_us() -> None:
    machine = probe(T4, hang_s=40, timeout_s=0.2)
    assert machine.best.kind == "cpu"
    assert "does not answer" in machine.reason


def test_without_a_library_there_is_no_reason(tmp_path: Path) -> None:
    assert device.probe({}, tmp_path, "Linux x86_64").reason == ""


def test_a_gpu_without_a_driver_is_named(tmp_path: Path) -> None:
    put(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    put(tmp_path, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    assert "no driver" in device.probe({}, tmp_path, "Linux x86_64").reason


def test_a_container_without_its_gpu_is_named(tmp_path: Path) -> None:
    put(tmp_path, "proc/driver/nvidia/version", "NVRM version")
    assert "--gpus all" in device.probe({}, tmp_path, "Linux x86_64").reason


@pytest.mark.parametrize(("chip", "bf16"), [("Apple M1 Pro", False), ("Apple M2", True), ("Apple M4 Max", True)])
def test_an_apple_chip_is_mps(tmp_path: Path, chip: str, bf16: bool) -> None:
    answers = {"machdep.cpu.brand_string": chip, "hw.memsize": str(24 * GIB)}
    machine = device.probe({}, tmp_path, "Darwin arm64", lambda key: answers.get(key, ""))
    assert (machine.best.kind, machine.best.name, machine.best.bf16) == ("mps", chip, bf16)
    assert machine.best.memory_total_bytes == 24 * GIB
    assert machine.best.memory_free_bytes <= 18 * GIB


def test_the_processor_and_its_memory(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx512_bf16\n")
    put(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    cpu = device.probe({}, tmp_path, "Linux x86_64").best
    assert (cpu.kind, cpu.name, cpu.bf16) == ("cpu", "Some CPU", True)
    assert (cpu.memory_total_bytes, cpu.memory_free_bytes) == (16 * GIB, 8 * GIB)


def test_a_containers_limits_hold(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    put(tmp_path, "proc/self/cgroup", "0::/box/job\n")
    put(tmp_path, "sys/fs/cgroup/box/memory.max", str(4 * GIB))
    put(tmp_path, "sys/fs/cgroup/box/memory.current", str(3 * GIB))
    put(tmp_path, "sys/fs/cgroup/box/memory.stat", f"anon 1\ninactive_file {GIB}\n")
    put(tmp_path, "sys/fs/cgroup/box/job/cpu.max", "100000 100000")
    assert processor.memory(tmp_path) == (4 * GIB, 2 * GIB)
    assert processor.cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "kind", "name", "gib", "capability", "bf16"),
    [
        ("NVIDIA A10:24GiB", "cuda", "NVIDIA A10", 24, "8.6", True),
        ("t4", "cuda", "Tesla T4", 16, "7.5", False),
        ("NVIDIA A100:80GiB", "cuda", "NVIDIA A100 80GB PCIe", 80, "8.0", True),
        ("A100:40 GB", "cuda", "NVIDIA A100-PCIE-40GB", 40, "8.0", True),
        ("Apple M2:16GiB", "mps", "Apple M2", 16, "", True),
        ("CPU:8GiB", "cpu", "CPU", 8, "", False),
    ],
)
def test_assumed_devices(text: str, kind: str, name: str, gib: int, capability: str, bf16: bool) -> None:
    found = device.assume(text)
    assert (found.kind, found.name, found.compute_capability, found.bf16) == (kind, name, capability, bf16)
    assert found.memory_total_bytes == gib * GIB
    assert found.memory_free_bytes < found.memory_total_bytes


@pytest.mark.parametrize("text", ["", ":", "Voodoo 2:8GiB", "A10:lots", "CPU", "NVIDIA H20-3e"])
def test_an_unknown_device_names_known_ones(text: str) -> None:
    with pytest.raises(InputError) as caught:
        device.assume(text)
    assert "GiB" in caught.value.remedy


def test_each_data_sheet_is_found_by_its_own_name() -> None:
    sheets = datasheets.specifications()
    assert len(sheets) == 60
    assert [datasheets.specification(sheet.name) for sheet in sheets] == list(sheets)


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
