"""A run carried out here: its job is the caller's own process, and status, log, results and report are a job's."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, TextIO, cast

from toolbox import environment
from toolbox.device import Device
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.job import Job, carry_out
from toolbox.runs import Run, job_environ
from toolbox.ui.following import metrics_text

TELL_EVERY_S = 2.0
BEFORE_TORCH = ("OMP_WAIT_POLICY", "CUDA_DEVICE_ORDER", "TOKENIZERS_PARALLELISM")
"""What of a job's environment counts here too; torch reads it once, when it is imported."""


class Here(Job):
    """A job's Reporter that also tells whoever called how it goes, a line now and then."""

    def __init__(self, run: Run, log: TextIO) -> None:
        run.write_status(run.begun())
        super().__init__(run)
        self.log = log
        self.pid = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._told = 0.0
        self.asked_by = 0
        """The signal that asked to stop; 0: none."""

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the first signal asks, the second interrupts at once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping, self.asked_by = True, number

    def guard(self, device: Device) -> None:
        """The caller's process is not ours to end."""

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        super().progress(step, steps, **metrics)
        now = time.monotonic()
        if now - self._told >= TELL_EVERY_S or step == steps:
            self._told = now
            print(" · ".join([f"{step}/{steps}", *metrics_text(metrics)]), flush=True)


def carry_out_here(run: Run, silent: bool = False) -> dict[str, Any]:
    """Do what the run's plan says, in this process; started again, a fine-tuning goes on from its newest checkpoint.

    What a job writes to log.txt goes there, and unless `silent` to standard output too. Ctrl-C once saves, twice does
    not; both raise KeyboardInterrupt. Raises what the job would end with, BusyError where the run is alive.
    """
    prepare()
    lock = run.lock()
    try:
        with open(run.log_path, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            job = Here(run, log)
            with redirect_stdout(cast(TextIO, log if silent else _Both(log, sys.stdout))), _signals(job):
                return _carried_out(run, job)
    finally:
        os.close(lock)
        gc.collect()  # hooks tie models into cycles; without this they keep their memory until some later time
        if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _carried_out(run: Run, job: Here) -> dict[str, Any]:
    try:
        return carry_out(run, job)
    except Interrupted as stopped:
        if job.asked_by == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise
    except KeyboardInterrupt:
        job.finish("interrupted", Interrupted(_("{run} was ended at once.").format(run=run.id)))
        raise


def prepare() -> None:
    """Set what torch reads from the environment when it is imported, as far as nobody else has said it."""
    if "torch" in sys.modules:
        return
    for name in BEFORE_TORCH:
        os.environ.setdefault(name, job_environ()[name])
    os.environ.setdefault("OMP_NUM_THREADS", str(environment.threads()))


@contextmanager
def _signals(job: Here) -> Iterator[None]:
    """While it is entered, SIGINT and SIGTERM ask `job` to stop; only the main thread may hear them."""
    if not job.pid:
        yield
        return
    before = {number: signal.signal(number, job.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Both:
    """What is written goes to the log and to the screen."""

    def __init__(self, log: TextIO, screen: TextIO) -> None:
        self._log, self._screen = log, screen

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._screen.write(text)

    def flush(self) -> None:
        self._log.flush()
        self._screen.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)
