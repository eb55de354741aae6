"""A run: the directory made from a plan, and all that front ends and jobs share."""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from toolbox import files, kernel, plugins
from toolbox.config import command_line
from toolbox.errors import BusyError, CorruptError, NotFoundError
from toolbox.i18n import _, language

State = Literal["planned", "running", "ready", "done", "failed", "interrupted", "lost"]
"""`ready`: a server that answers. `lost`: the process died without a word (kill -9, power); readers work that out."""

ACTIVE: tuple[State, ...] = ("running", "ready")
ROOT = Path(__file__).parent.parent
FORCED = "[ended at once, as a person asked]"
"""Stands in the log of a job that was killed by `runs stop --force` or by a second Ctrl-C."""


class Status(msgspec.Struct, kw_only=True):
    """status.json: where a job is. Times are seconds since the epoch; durations come from a monotonic clock."""

    state: State = "planned"
    verb: str = ""
    stage: str = ""
    """The stage of a finetune run, the verb of any other."""
    model: str = ""
    phase: str = ""
    pid: int = 0
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    started_at: float = 0.0
    updated_at: float = 0.0
    elapsed_s: float = 0.0
    """How long the job has worked since it was started last."""
    log_from: int = 0
    """The byte of log.txt at which the last start begins."""
    boot: kernel.Boot | None = None
    """The machine when the job was started last."""
    killed_for_memory: bool = False
    """Whether the kernel ended the start before this one for want of memory, so that this one takes less."""
    resumable: bool = False
    error: dict[str, str] | None = None

    @property
    def finished(self) -> bool:
        return self.state not in ("planned", *ACTIVE)

    @property
    def model_name(self) -> str:
        """The model in few characters: of a folder only its name."""
        return Path(self.model).name if self.model.startswith(os.sep) else self.model


class Reporter(Protocol):
    """What work may ask of the job that runs it."""

    @property
    def stopping(self) -> bool:
        """A person or the system asked to stop: save, then raise `Interrupted`."""

    def phase(self, text: str) -> None:
        """Say in a few words, in the person's language, what is being done now."""

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        """One step done of `steps`; `metrics` become a line of metrics.jsonl."""

    def ready(self, **facts: Any) -> None:
        """A server answers: `facts` (url, pid …) become result.json and the state becomes `ready`."""

    def resumable(self) -> None:
        """A complete checkpoint exists."""

    def resumed(self, step: int) -> None:
        """Work goes on after `step` (0: from the start): metrics past it, of an earlier start, are forgotten."""


class Silent:
    """A Reporter for work called from Python, outside a job."""

    stopping = False

    def phase(self, text: str) -> None: ...
    def progress(self, step: int, steps: int, **metrics: float) -> None: ...
    def ready(self, **facts: Any) -> None: ...
    def resumable(self) -> None: ...
    def resumed(self, step: int) -> None: ...


class Run:
    """A run directory. Front ends read it and send signals; only its job writes status, metrics and results."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.yaml"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def plugin(self, number: int, file: plugins.File) -> Path:
        """The copy of the plan's `number`-th plugin file, which the job loads."""
        return self.path / "plugins" / f"{number + 1}-{file.path.name}"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def status(self) -> Status:
        """The state as of now; a job that died without a word is `lost`, and so is a dead one whose status is torn."""
        path = self.path / "status.json"
        try:
            status = msgspec.json.decode(path.read_bytes(), type=Status)
        except FileNotFoundError:
            status = Status()
        except msgspec.DecodeError:
            status = Status(state="running", error=CorruptError(_("{path} can't be read.").format(path=path)).as_dict())
        if status.state in ACTIVE and not self.alive():
            status.state = "lost"
        return status

    def write_status(self, status: Status) -> None:
        files.write_json(self.path / "status.json", status)

    def result(self) -> dict[str, Any]:
        """What the job left for `--json`; empty until it has."""
        return files.read_json(self.path / "result.json") or {}

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line torn by a crash is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue

    def alive(self) -> bool:
        """Whether a job runs here: it holds the lock for as long as it lives, however it dies."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def lock(self) -> int:
        """A descriptor that holds the run's lock: while anybody has it open, the run is alive.

        Raises BusyError where another has it.
        """
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BusyError(_("{run} is already running.").format(run=self.id), self.command("runs", "tail")) from error
        return descriptor

    def start(self, environ: dict[str, str] | None = None) -> int:
        """Start the job in a session of its own, so that it outlives this terminal; returns its pid.

        The child inherits the locked descriptor, so there is no moment at which the run looks dead.
        Raises BusyError where it already runs.
        """
        lock = self.lock()
        self.write_status(self.begun())
        try:
            with open(self.log_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "toolbox.job", str(self.path)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock], start_new_session=True,
                    env={**os.environ, **job_environ(), **self._caches(), **(environ or {})},
                )  # fmt: skip
        finally:
            os.close(lock)
        return child.pid

    def _caches(self) -> dict[str, str]:
        """Where torch's compiler keeps its pickles: by default a name in /tmp that another user may have taken."""
        return {"TORCHINDUCTOR_CACHE_DIR": str(self.path.parents[1] / "cache" / "inductor")}

    def begun(self) -> Status:
        """The status of a run that is started now, for the first time or again."""
        status = self.status()
        status.killed_for_memory = self.killed_for_memory(status)
        status.state, status.phase, status.error = "running", "", None
        status.pid, status.started_at, status.elapsed_s = 0, time.time(), 0.0
        status.log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        status.boot = kernel.boot()
        return status

    def killed_for_memory(self, status: Status) -> bool:
        """Whether the kernel has ended the job for want of memory, as far as its counter tells, or the run that this
        one is to do again."""
        then, now = status.boot, kernel.boot()
        if status.state == "planned":
            return status.killed_for_memory
        return status.state == "lost" and bool(then and then.id == now.id and then.oom_kills < now.oom_kills)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint that was written to its end."""
        return any(self.checkpoints.glob("checkpoint-*/complete.json"))

    def stop(self, force: bool = False) -> bool:
        """Ask the job to save and stop; with `force`, end it and everything it started at once.

        False where there is nobody to ask: it has ended, or has not told its pid yet.
        """
        pid = self.status().pid
        if not pid or not self.alive():
            return False
        try:
            if force:
                self._note(FORCED)
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True

    def _note(self, text: str) -> None:
        """A line in the log for who asks later why it ends there; a full disk keeps nobody from ending a run."""
        with suppress(OSError), self.log_path.open("a") as log:
            log.write(f"\n{text}\n")

    def command(self, *words: str) -> str:
        """The line that does `words` (`runs tail`, `chat --run` …) with this run."""
        return command_line(self.path.parents[1], *words, self.id)

    def remove(self) -> None:
        """Delete the directory. Raises BusyError while its job runs."""
        if self.alive():
            raise BusyError(_("{run} is running.").format(run=self.id), self.command("runs", "stop"))
        shutil.rmtree(self.path)


KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Kernels that oneDNN and torch keep for shapes seen before, each with memory of its own. Rows without padding bring
new shapes at every step: of the usual 1024, 40 steps in bfloat16 filled 1295 MiB where 64 took 515, no slower."""


def job_environ() -> dict[str, str]:
    """What every child process needs: this package, the language, and OpenMP threads that don't spin.

    Spinning costs 20 times on shared cores.
    """
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash in a library's machine code leaves a traceback too
        "YCDY_LANG": language(),
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts, so that a plan's GPU is the job's GPU
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **KERNELS_KEPT,
    }


def create(runs: Path, name: str, plan: msgspec.Struct) -> Run:
    """A new run directory `YYYYMMDD-HHMM-name` with its plan.yaml and run.sh, below the folder `runs`."""
    stem = f"{time.strftime('%Y%m%d-%H%M')}-{re.sub(r'[^0-9A-Za-z._-]+', '-', name).strip('-.').lower()}"
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = runs / (stem + suffix)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        run = Run(path)
        for number, file in enumerate(getattr(plan, "plugins", ())):
            files.write_bytes(run.plugin(number, file), plugins.source(file))
        files.write_bytes(run.plan_path, msgspec.yaml.encode(plan, enc_hook=str))
        files.write_text(path / "run.sh", _script(run), mode=0o700)
        verb = str(getattr(plan, "verb", ""))
        model = str(getattr(getattr(plan, "model", None), "id", ""))
        stage = str(getattr(plan, "stage", verb))
        run.write_status(Status(verb=verb, stage=stage, model=model, updated_at=time.time()))
        return run
    raise BusyError(_("There are too many runs named {name}.").format(name=stem), "runs remove")


def _script(run: Run) -> str:
    toolbox = shlex.quote(str(ROOT / "yichuidingyin.sh"))
    return (
        "#!/usr/bin/env bash\n"
        "# Does this run again, from the plan beside it; nothing is to be edited.\n"
        'here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)\n'
        f'exec bash "${{YCDY_SCRIPT:-{toolbox}}}" runs reproduce "$here/plan.yaml" "$@"\n'
    )


def undated(id: str) -> str:
    """A run's name without its date and time: what a further run on it is named after."""
    found = re.fullmatch(r"\d{8}-\d{4}-(.+)", id)
    return found.group(1) if found else id


def every(runs: Path) -> list[Run]:
    """All runs, newest first."""
    if not runs.is_dir():
        return []
    found = [Run(path) for path in runs.iterdir() if (path / "plan.yaml").is_file()]
    return sorted(found, key=lambda run: (run.path / "plan.yaml").stat().st_mtime_ns, reverse=True)


def find(runs: Path, name: str, meant: Callable[[Run], bool] = lambda run: True) -> Run:
    """The run of that id, a path to one, a unique beginning of an id, or `last`: the newest that can be `meant`.

    Raises NotFoundError naming what there is.
    """
    known = every(runs)
    if name == "last" and known:
        return next(filter(meant, known), known[0])
    if os.sep in name and (Path(name) / "plan.yaml").is_file():
        return Run(Path(name).resolve())
    matches = [run for run in known if run.id == name] or [run for run in known if name and run.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    ids = ", ".join(run.id for run in (matches or known)[:5]) or _("none yet")
    raise NotFoundError(_("There is no single run {name!r}.").format(name=name), _("Runs: {ids}.").format(ids=ids))
