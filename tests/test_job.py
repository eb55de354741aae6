"""The job: signals, what it leaves behind however it ends, and resuming to the very numbers of the straight run."""

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import finetune_run

from toolbox import files, job, runs
from toolbox.errors import OutOfMemoryError
from toolbox.runs import Run
from toolbox.training import checkpoints

TESTS = Path(__file__).parent
WAIT_S = 100
LONGER = {"max_steps": 12, "save_steps": 1, "gradient_accumulation_steps": 1, "eval_steps": 100}


class Started:
    """A job that a test started; it does not outlive the test."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pid = run.start({"PYTHONPATH": os.pathsep.join([str(runs.ROOT), str(TESTS)]), "YCDY_LANG": "en"})
        self._status: int | None = None

    def until(self, seen: Callable[[], Any]) -> None:
        """Wait for something to be seen while the job runs."""
        end = time.monotonic() + WAIT_S
        while not seen():
            assert self.poll() is None, f"the job ended with {self._status}: {self.run.log_path.read_text()}"
            assert time.monotonic() < end, self.run.log_path.read_text()
            time.sleep(0.01)

    def until_steps(self, count: int) -> None:
        self.until(lambda: len([line for line in self.run.metrics() if "loss" in line]) >= count)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        end = time.monotonic() + WAIT_S
        while self.poll() is None:
            assert time.monotonic() < end, self.run.log_path.read_text()
            time.sleep(0.01)
        assert self._status is not None
        return self._status

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Run], Started]]:
    monkeypatch.setattr(subprocess, "_cleanup", lambda: None)  # which would take the exit statuses waited for here
    begun: list[Started] = []

    def start(run: Run) -> Started:
        begun.append(Started(run))
        return begun[-1]

    yield start
    for one in begun:
        if one.poll() is None:
            one.send(signal.SIGKILL)
            one.end()


Start = Callable[[Run], Started]


def losses(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.metrics() if "loss" in line]


def adapter(run: Run) -> str:
    return files.sha256(run.adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_stopped_and_killed_runs_end_as_the_straight_one(home: Path, start: Start) -> None:
    """SIGTERM in the first life, kill -9 in the second: the third ends with the straight run's losses and adapter."""
    straight, disturbed = finetune_run(home, **LONGER), finetune_run(home, **LONGER)
    whole = start(straight)
    first = start(disturbed)
    first.until_steps(2)
    first.send(signal.SIGTERM)
    assert first.end() == 130
    status = disturbed.status()
    assert (status.state, status.resumable) == ("interrupted", True)
    assert status.error
    assert f"runs resume {disturbed.id}" in status.error["remedy"]
    assert checkpoints.newest(disturbed.checkpoints)
    done = len(losses(disturbed))
    second = start(disturbed)
    second.until(lambda: len(losses(disturbed)) > done)
    second.send(signal.SIGKILL)
    assert second.end() == -signal.SIGKILL
    assert disturbed.status().state == "lost"
    third = start(disturbed)
    assert (third.end(), whole.end()) == (0, 0)
    assert losses(disturbed) == losses(straight)
    assert [step for step, _ in losses(disturbed)] == list(range(1, 13))
    assert adapter(disturbed) == adapter(straight)
    elapsed = [line["elapsed_s"] for line in disturbed.metrics()]
    assert elapsed == sorted(elapsed)
    assert disturbed.result()["train_loss"] == straight.result()["train_loss"]
    assert disturbed.status().state == "done"
    assert (disturbed.path / "report.md").is_file()


def test_a_lost_terminal_and_a_dead_log_reader_do_not_stop_it(home: Path, start: Start) -> None:
    run = finetune_run(home, max_steps=30, entry="jobs:count")
    one = start(run)
    reader = subprocess.Popen(["tail", "-f", str(run.log_path)], stdout=subprocess.PIPE)
    one.until_steps(1)
    one.send(signal.SIGHUP)
    reader.kill()
    reader.communicate()
    assert one.end() == 0
    environ = files.read_json(run.path / "env.json")
    assert {"packages", "platform", "python", "ram_bytes", "threads", "seed"} <= set(environ)


def test_the_second_signal_ends_it_at_once(home: Path, start: Start) -> None:
    run = finetune_run(home, max_steps=100_000, entry="jobs:deaf")
    one = start(run)
    one.until(lambda: run.status().step > 0)
    one.send(signal.SIGINT)
    time.sleep(0.2)
    assert one.poll() is None
    one.send(signal.SIGINT)
    assert one.end() == 130
    assert run.status().state == "lost"


def test_a_full_memory_is_told_as_such(home: Path) -> None:
    run = Run(home)
    words = "[enforce fail at alloc_cpu.cpp:132] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    for error in (MemoryError(), RuntimeError(words), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert isinstance(job.explain(error, run), OutOfMemoryError)
    assert not isinstance(job.explain(RuntimeError("shape mismatch"), run), OutOfMemoryError)


def test_what_nobody_foresaw_is_one_sentence(home: Path) -> None:
    told = job.explain(ValueError("line one\nline two " + "x" * 1000), Run(home))
    assert "ValueError" in told.message
    assert "\n" not in told.message
    assert len(told.message) < 400
    assert job.explain(KeyError(), Run(home)).message
    assert "disk is full" in job.explain(OSError(28, "No space left on device"), Run(home)).message


def test_metrics_past_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "elapsed_s": step / 2, "loss": 1.0} for step in (1, 2, 3)]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b'\n{"step":4,"ela')
    file, elapsed_s = job.open_metrics(path, 2)
    file.write(b'{"step":3}\n')
    assert elapsed_s == 1.0
    assert [msgspec.json.decode(line)["step"] for line in path.read_bytes().splitlines()] == [1, 2, 3]
    job.open_metrics(path, 0)[0].close()
    assert path.read_bytes() == b""


def test_what_a_killed_job_left_half_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".status.json.abc.tmp").write_text("{")
    (tmp_path / ".adapter.abc.part").mkdir()
    (tmp_path / ".adapter.abc.part" / "half").write_text("")
    (tmp_path / ".lock").write_text("")
    job.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_report_that_fails_does_not_hide_how_the_job_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetune_run(home)

    def fail(run: Run) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("toolbox.report.write_report", fail)
    job._end(run, job.Job(run), "done", None)
    assert files.read_json(run.path / "status.json")["state"] == "done"


def test_a_status_that_can_not_be_written_does_not_end_the_work(home: Path) -> None:
    reporter = job.Job(Run(home / "gone"))
    (home / "gone").parent.mkdir(parents=True, exist_ok=True)
    (home / "gone").write_text("a file where the run's folder should be")
    reporter.phase("still working")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_50_kills_at_random_moments_lose_nothing(home: Path, start: Start) -> None:
    """Nine lives of ten end within a few steps of their first, in saving more often than not; the tenth in loading."""
    changes = {**LONGER, "max_steps": 120, "eval_rows": 0}
    straight, disturbed = finetune_run(home, **changes), finetune_run(home, **changes)
    assert start(straight).end() == 0
    chance = random.Random(7)
    kills = 0
    while kills < 50 and disturbed.status().state != "done":
        one, before = start(disturbed), len(losses(disturbed))
        moment = chance.uniform(0, 0.12)
        if kills % 10 == 9:
            time.sleep(chance.uniform(0, 3))
        else:
            one.until(lambda before=before: last_step(disturbed) > before or one.poll() is not None)  # noqa: B023
            time.sleep(moment)
        one.send(signal.SIGKILL)
        one.end()
        kills += 1
        nothing_is_torn(disturbed)
    assert kills == 50
    assert start(disturbed).end() == 0
    assert losses(disturbed) == losses(straight)
    assert adapter(disturbed) == adapter(straight)
    assert {path.name for path in disturbed.path.iterdir()} == {path.name for path in straight.path.iterdir()}


def last_step(run: Run) -> int:
    return max((step for step, _ in losses(run)), default=0)


def nothing_is_torn(run: Run) -> None:
    """Whatever stands under its final name is whole."""
    assert run.status().state in ("lost", "done", "planned")
    assert all(checkpoints.complete(path) for path in run.checkpoints.glob("checkpoint-*"))
    if run.adapter.exists():
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in run.adapter.iterdir()}
    steps = [step for step, _ in losses(run)]
    assert all(later == earlier + 1 for earlier, later in itertools.pairwise(steps))
