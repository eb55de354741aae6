"""The one main of every child process, `python -m toolbox.job RUN_DIR`: calls the work that the run's plan names."""

import importlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TextIO

import msgspec

from toolbox import calibration, environment, files, gpu_watch, i18n, own_code, plan, planning, plugins, startup
from toolbox.device import Device
from toolbox.errors import (
    DONE,
    INTERRUPTED,
    DiskError,
    Interrupted,
    LostGpuError,
    OutOfMemoryError,
    ToolboxError,
    lacks_memory,
)
from toolbox.i18n import _
from toolbox.runs import FORCED, Run, State

SHOWN_CHARS = 300
HANGING = "tracker "
"""What the threads of trackers are called (training/trackers.py)."""
STATUS_EVERY_S = 0.5
"""At most this often is status.json replaced: an fsync a step would slow a fast loop."""


class Job:
    """The Reporter that work sees: status.json, metrics.jsonl, and the wish to stop."""

    def __init__(self, run: Run) -> None:
        self.log: TextIO = sys.stderr
        """Where a traceback goes."""
        self.pid = os.getpid()
        """Where signals are heard; 0: nowhere."""
        self._run = run
        self._status = run.status()
        self._metrics: BinaryIO | None = None
        self._started = self._begun = time.monotonic()
        self._elapsed_before = 0.0
        self._begun_step = 0
        self._written = 0.0
        self.stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the first signal asks, the second ends the process at once."""
        if self.stopping:
            os.write(sys.stderr.fileno(), f"\n{FORCED}\n".encode())
            os._exit(INTERRUPTED)
        self.stopping = True

    def begin(self, verb: str, model: str) -> None:
        """The work begins, in this process."""
        status = self._status
        status.state, status.pid, status.started_at = "running", self.pid, time.time()
        status.verb, status.model = verb, model
        self.phase(_("Loading"))

    def guard(self, device: Device) -> None:
        """End the process where its GPU is lost: what waits for that may wait for ever."""
        if device.kind == "cuda":
            gpu_watch.start(device.index, self._gpu_lost)

    def _gpu_lost(self, reason: str) -> None:
        resume = self._run.command("runs", "resume")
        then = _("Then go on with: {command}").format(command=resume) if self._run.has_checkpoint() else ""
        error = LostGpuError(reason, then)
        print(error.message, error.remedy, sep="\n", flush=True)
        _end(self._run, self, "failed", error)
        os._exit(error.exit_status)

    def phase(self, text: str) -> None:
        print(text, flush=True)
        self._status.phase = text
        self._write()

    def resumed(self, step: int) -> None:
        self._open(step)

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        file = self._metrics or self._open(0)
        now = time.monotonic()
        self._status.step, self._status.steps = step, steps
        self._status.eta_s = round((now - self._begun) / max(1, step - self._begun_step) * (steps - step), 1)
        line = {"step": step, "elapsed_s": round(self._elapsed_before + now - self._begun, 3), **metrics}
        file.write(msgspec.json.encode(line) + b"\n")
        if now - self._written >= STATUS_EVERY_S or step == steps:
            self._write()

    def _open(self, step: int) -> BinaryIO:
        """Begin to count steps and seconds after `step`; steps that tell nothing else begin anew."""
        startup.end()
        self._metrics, self._elapsed_before = open_metrics(self._run.path / "metrics.jsonl", step)
        self._begun, self._begun_step = time.monotonic(), step
        return self._metrics

    def ready(self, **facts: Any) -> None:
        startup.end()
        files.write_json(self._run.path / "result.json", facts)
        self._status.state = "ready"
        self._write()

    def resumable(self) -> None:
        self._status.resumable = True
        self._write()

    def finish(self, state: State, error: ToolboxError | None = None) -> None:
        self._status.state = state
        self._status.eta_s = None
        self._status.error = error.as_dict() if error else None
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status.updated_at = time.time()
        self._status.elapsed_s = round(self._written - self._started, 3)
        try:
            self._run.write_status(self._status)
        except OSError as error:  # a full disk must not end work that can go on
            print(f"status.json: {error}", flush=True)


def open_metrics(path: Path, step: int) -> tuple[BinaryIO, float]:
    """(metrics.jsonl opened for more lines, the seconds that had passed at its last line), lines past `step` dropped.

    `step` 0 drops all of them: the work begins anew. The old file stays whole until the new one stands.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if step and path.exists() else []:
        try:
            known = msgspec.json.decode(line, type=MetricsLine)
        except msgspec.DecodeError:  # torn by a crash
            continue
        if known.step <= step:
            kept.append((line.rstrip(b"\n") + b"\n", known.elapsed_s))
    files.write_bytes(path, b"".join(line for line, _ in kept))
    return path.open("ab", buffering=0), kept[-1][1] if kept else 0.0


class MetricsLine(msgspec.Struct):
    """What every line of metrics.jsonl has."""

    step: int
    elapsed_s: float = 0.0


def main(directory: str) -> int:
    """Run the plan in `directory` to its end; returns the exit status."""
    startup.begin()
    os.umask(0o077)
    os.environ.setdefault("OMP_NUM_THREADS", str(environment.threads()))
    i18n.use(os.environ.get("YCDY_LANG") or i18n.detect())
    run = Run(Path(directory))
    job = Job(run)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, job.stop)
    try:
        carry_out(run, job)
    except ToolboxError as error:
        print(error.message, error.remedy, sep="\n", flush=True)
        return error.exit_status
    return DONE


def carry_out(run: Run, job: Job) -> dict[str, Any]:
    """Do what the run's plan says; status, result and report are written, whatever it comes to. Returns the result.

    Raises the ToolboxError that it came to; what nobody foresaw as one, with its traceback in the log.
    """
    sweep(run.path)
    try:
        result = _work(run, job)
    except Interrupted as error:
        _end(run, job, "interrupted", error)
        raise
    except ToolboxError as error:
        _end(run, job, "failed", error)
        raise
    except Exception as error:  # the one place where what nobody foresaw becomes a sentence; the log has the traceback
        traceback.print_exc(file=job.log)
        explained = explain(error, run)
        _end(run, job, "failed", explained)
        raise explained from error
    _end(run, job, "done", None)
    return result


def _work(run: Run, job: Job) -> dict[str, Any]:
    begun = time.monotonic()
    work = plan.load(run.plan_path)
    job.begin(work.verb, work.model.id)
    job.guard(work.device)
    files.write_json(run.path / "env.json", environment.describe(work.seed))
    own_code.admit(work.model.path, work.model.own_code, run.path / "modules")
    if not _quantises(work):
        startup.leave_out("bitsandbytes")
    for number, file in enumerate(work.plugins):
        plugins.load(run.plugin(number, file), shown=file.path, sha256=file.sha256)
        if changed := plugins.changed(file):
            print(changed, flush=True)
    module, function = work.entry.split(":")
    with startup.hidden("boto3"):  # accelerate imports it for SageMaker where it is installed: a third of a second
        imported = importlib.import_module(module)
    result: dict[str, Any] = getattr(imported, function)(work, run, job)
    if isinstance(work, plan.FinetunePlan):
        done_by = imported.lowered(work, run) if result.get("ladder") else work
        load = planning.load_of(done_by)
        result |= calibration.compared(done_by, load, run, result, time.monotonic() - begun)
    files.write_json(run.path / "result.json", result)
    return result


def _quantises(work: plan.AnyPlan) -> bool:
    """Whether the work may need bitsandbytes, whose import takes a second: nobody knows what plugins need."""
    stored, loaded = work.model.quantization, getattr(work, "quantization", "none")
    rounded = bool(stored) or loaded != "none" or "8bit" in str(getattr(work, "training", ""))
    rounded = rounded or getattr(work, "allow_4bit", False) or getattr(work, "format", "") == "bnb"
    return rounded or bool(work.plugins or plugins.packages())


def sweep(folder: Path) -> None:
    """Remove the scratch files and folders that an earlier, killed job of this run left behind; none other may run."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for leftover in folder.glob(".*.part"):
        shutil.rmtree(leftover)


def explain(error: Exception, run: Run) -> ToolboxError:
    """What nobody foresaw, as a sentence: memory and disk by name, the rest by the library's own last words."""
    text = " ".join(str(error).split())
    if lacks_memory(error):
        return OutOfMemoryError(
            _("The device ran out of memory."),
            _("Use a smaller --set per_device_train_batch_size=… or --max-length, or --method qlora."),
        )
    if files.is_full(error):
        return DiskError(
            _("The disk is full."),
            _("Free some space, then go on with: {command}").format(command=run.command("runs", "resume")),
        )
    if broken := plugins.blame(error):
        return broken
    shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
    return ToolboxError(
        _("{kind} in the library underneath: {text}").format(kind=type(error).__name__, text=shown or _("no message")),
        _("The whole story is in {log}.").format(log=run.log_path),
    )


def _end(run: Run, job: Job, state: State, error: ToolboxError | None) -> None:
    from toolbox.report import write_reports

    job.finish(state, error)
    try:
        write_reports(run)
    except Exception:  # whatever a report trips over, the job's own end stands
        traceback.print_exc(file=job.log)


def leave(status: int) -> None:
    """End the process, also where a tracker hangs: what such libraries do at the interpreter's end might never end."""
    if any(thread.name.startswith(HANGING) for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1]))
