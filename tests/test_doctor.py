"""The self-check: every fault it is there to find, injected."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import ROOT, Cli
from hardware import A10, with_gpus

from toolbox import device
from toolbox.commands import doctor
from toolbox.config import Home
from toolbox.device import Device, Machine

CPU = Device(kind="cpu", name="CPU", memory_total_bytes=8 << 30, memory_free_bytes=4 << 30, bf16=False, cores=2)
GPU = Device(kind="cuda", name="GPU X", memory_total_bytes=8 << 30, memory_free_bytes=4 << 30, bf16=True)


def test_a_healthy_machine_without_a_gpu_ends_with_0(toolbox_cli: Cli) -> None:
    answer = toolbox_cli("doctor", "--json").done().json
    found = {check["name"]: check for check in answer["checks"]}
    assert all(set(check) >= {"name", "ok", "detail", "remedy"} for check in answer["checks"])
    assert {"Python", "torch", "GPU", "Processor", "Memory", "Data folder", "Disk", "Embedded model"} <= set(found)
    assert all(check["ok"] for check in answer["checks"] if check["required"])
    assert all(not check["remedy"] for check in answer["checks"] if check["ok"])


def test_a_broken_driver_is_shown_with_what_to_do() -> None:
    gpu = next(doctor.hardware(Machine(devices=(CPU,), reason="The GPU is lost: restart this machine.")))
    assert (gpu.name, gpu.ok) == ("GPU", False)
    assert "restart" in gpu.detail


def test_a_torch_without_cuda_beside_a_gpu_fails(toolbox_cli: Cli) -> None:
    if device.torch_cuda():
        pytest.skip("this environment has a CUDA build")
    answer = toolbox_cli("doctor", "--json", env=with_gpus(A10))
    torch = next(check for check in answer.json["checks"] if check["name"] == "torch")
    assert answer.status == 1
    assert not torch["ok"]
    assert "YCDY_LOCK=cuda" in torch["remedy"]


def test_what_else_runs_on_a_gpu_is_named() -> None:
    busy = msgspec.structs.replace(GPU, processes=(device.GpuProcess(7, "python", 3 << 30),))
    first = next(doctor.hardware(Machine(devices=(busy, CPU), driver="580")))
    assert "python (pid 7) holds 3.0 GiB" in first.detail


@pytest.mark.parametrize(
    ("answer", "gpu", "ok"),
    [
        ((True, "2.13.0+cpu - False"), False, True),
        ((True, "2.13.0 13.0 True"), True, True),
        ((True, "2.13.0 13.0 False"), True, False),
        ((True, "2.13.0+cpu - False"), True, False),
        ((False, "ModuleNotFoundError: No module named 'torch'"), False, False),
    ],
)
def test_torch_is_judged_by_what_it_says(answer: tuple[bool, str], gpu: bool, ok: bool) -> None:
    machine = Machine(devices=(GPU, CPU) if gpu else (CPU,))
    check = doctor.torch(machine, lambda: answer)
    assert check.ok == ok
    assert check.required


@pytest.mark.parametrize(("version", "ok"), [((3, 11, 7), True), ((3, 12, 0), False), ((3, 9, 2), False)])
def test_the_python_is_3_11(version: tuple[int, ...], ok: bool) -> None:
    assert doctor.python(version).ok == ok


@pytest.mark.parametrize(("stamp", "ok", "word"), [("a", True, "cpu"), ("b", False, "older"), (None, True, "by hand")])
def test_an_environment_is_compared_with_its_lock(tmp_path: Path, stamp: Any, ok: bool, word: str) -> None:
    for folder, text in (("locks", "a"), ("env/locks", stamp)):
        (tmp_path / folder).mkdir(parents=True)
        if text:
            (tmp_path / folder / "cpu.txt").write_text(text)
    check = doctor.environment(tmp_path / "env", tmp_path / "locks")
    assert check.ok == ok
    assert word in check.detail
    (tmp_path / "env" / "locks" / "dev.txt").write_text("old")
    assert doctor.environment(tmp_path / "env", tmp_path / "locks").remedy.endswith("--prepare dev")


def test_a_data_folder_that_can_not_be_made_is_required(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor.folder(Home(tmp_path / "file" / "home"))
    assert (check.ok, check.required) == (False, True)
    assert "--home" in check.remedy


def test_torn_settings_are_named(home: Path) -> None:
    home.mkdir()
    (home / "settings.json").write_text("{")
    assert not doctor.settings(Home(home)).ok


def engine_checks(home: Path, *devices: Device) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.engines(Machine(devices=devices), Home(home))}


def an_engine(home: Path, name: str, says: str) -> Path:
    """An environment whose interpreter says what `says` prints."""
    folder = home / "engines" / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{says}\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "locks").mkdir()
    shutil.copy(ROOT / "locks" / f"{name}.txt", folder / "locks")
    return folder


def test_an_engine_is_missed_only_beside_a_gpu_that_has_none(home: Path) -> None:
    assert all(check.ok for check in engine_checks(home, CPU).values())
    wrong = [check for check in engine_checks(home, GPU, CPU).values() if not check.ok]
    assert [check.name for check in wrong] == ["Engine vllm"]
    assert "engines install vllm" in wrong[0].remedy
    an_engine(home, "lmdeploy", "echo True; echo 0.18.0")
    checks = engine_checks(home, CPU)
    assert all(check.ok for check in checks.values())
    assert checks["Engine lmdeploy"].detail.endswith("engines/lmdeploy, it needs an NVIDIA GPU")


def test_what_is_wrong_with_an_engine_is_found(home: Path) -> None:
    half = an_engine(home, "vllm", "echo True; echo 0.32.0")
    (half / "preparing").touch()
    an_engine(home, "sglang", "echo Segmentation fault >&2; exit 139")
    stale = an_engine(home, "lmdeploy", "echo False; echo 0.18.0")
    checks = engine_checks(home, GPU, CPU)
    assert checks["Engine vllm"].detail == "half made"
    assert "does not start: Segmentation fault" in checks["Engine sglang"].detail
    assert "no compiler, or no Python.h" in checks["Engine lmdeploy"].detail
    assert "g++" in checks["Engine lmdeploy"].remedy
    (stale / "locks" / "lmdeploy.txt").write_text("lmdeploy==0.1")
    check = engine_checks(home, CPU)["Engine lmdeploy"]
    assert (check.ok, "older than its lock" in check.detail) == (False, True)
    (stale / "pinned").touch()
    check = engine_checks(home, CPU)["Engine lmdeploy"]
    assert (check.ok, "pinned" in check.detail) == (True, True)
