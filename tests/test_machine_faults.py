"""Faults of the machine: a GPU that is lost (25) at start, in doctor and while a job runs; clocks that jump (27)."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from hardware import A10, T4, with_gpus
from plans import CPU, finetune_run
from test_diagnosis import Start, only
from test_job import Started, start  # noqa: F401 - a fixture

from toolbox import gpu_watch, runs
from toolbox.face.here import carry_out_here
from toolbox.runs import Run

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


# 25: the GPU is lost


def test_a_lost_gpu_is_said_at_the_start(toolbox_cli: Cli) -> None:
    lost = with_gpus({**A10, "error": 15})
    planned = toolbox_cli("finetune", "--model", "demo", "--dataset", "demo-persona", "--dry-run", env=lost).done()
    assert "lost" in planned.out
    assert "restart this machine" in planned.out


def test_a_gpu_is_lost_once_it_was_lost_twice_in_a_row() -> None:
    answers, told = iter(["", "hiccup", "", "", "gone", "gone", "never asked"]), list[str]()
    gpu_watch.watch(lambda: next(answers), told.append, every_s=0, grace_s=0)
    assert told == ["gone"]
    assert next(answers) == "never asked"


@pytest.mark.slow
def test_a_job_whose_gpu_is_lost_ends_and_says_what_to_do(home: Path, start: Start, monkeypatch: Any) -> None:  # noqa: F811
    """The work waits for ever; the watch ends it."""
    environ = with_gpus(T4, {**A10, "lost_after_s": 4})
    gpu = msgspec.structs.replace(CPU, kind="cuda", index=1)
    run = finetune_run(home, entry="tests.jobs:hang", device=gpu)
    monkeypatch.setenv("FAKE_NVML", environ["FAKE_NVML"])
    monkeypatch.setattr(runs, "ROOT", os.pathsep.join([environ["PYTHONPATH"], str(runs.ROOT)]))
    assert start(run).end() == 1
    status = run.status()
    assert status.error
    assert (status.state, status.error["kind"]) == ("failed", "gpu_lost")
    cause = only(run)
    assert cause.kind == "gpu_lost"
    assert "Restart the machine" in cause.remedy
    assert (run.path / "report.md").is_file()


# 27: the clock jumps


def sane(run: Run) -> None:
    """All durations are those that passed, whatever the clock said."""
    status = run.status()
    assert status.state == "done"
    assert 0 < status.elapsed_s < 100
    elapsed = [line["elapsed_s"] for line in run.metrics()]
    assert elapsed == sorted(elapsed)
    assert 0 < elapsed[-1] < 100
    took = next(line for line in (run.path / "report.md").read_text().splitlines() if "took" in line)
    assert "took 0:" in took
    assert "day" not in took


def test_a_clock_that_jumps_changes_no_duration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetune_run(home, entry="tests.jobs:jumping", max_steps=12)
    etas: list[float] = []
    write = Run.write_status

    def record(self: Run, status: runs.Status) -> None:
        etas.extend([status.eta_s] if status.eta_s is not None else [])
        write(self, status)

    monkeypatch.setattr(Run, "write_status", record)
    carry_out_here(run, silent=True)
    sane(run)
    assert etas
    assert all(0 <= eta < 10 for eta in etas)


@pytest.mark.slow
@pytest.mark.skipif(LIBFAKETIME is None, reason="libfaketime is not installed")
def test_a_real_job_under_a_jumping_clock(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,  # noqa: F811
) -> None:
    """libfaketime moves the clock of the process, time() and clock_gettime() alike, but for the monotonic one."""
    now = tmp_path / "now"
    now.write_text("+0")
    environ = {"LD_PRELOAD": str(LIBFAKETIME), "FAKETIME_TIMESTAMP_FILE": str(now), "FAKETIME_NO_CACHE": "1"}
    for name, value in {**environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}.items():
        monkeypatch.setenv(name, value)
    run = finetune_run(home, entry="tests.jobs:count", max_steps=60)
    job = start(run)
    for name in environ:
        monkeypatch.delenv(name)
    job.until_steps(10)
    now.write_text("+40d")
    job.until_steps(30)
    assert run.status().updated_at > time.time() + 30 * 86400, "the clock did not jump"
    assert 0 <= (run.status().eta_s or 0) < 60
    now.write_text("-40d")
    assert job.end() == 0
    sane(run)
