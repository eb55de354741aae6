"""Programs and their tests, run confined, several at a time: the sandbox as callers see it."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from toolbox import processor
from toolbox.errors import InputError
from toolbox.i18n import _

ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.append(sys.argv[1]); from toolbox.sandbox import warden; warden.main()"
LAYERS = ("namespaces", "landlock")
"""What keeps files away, each where the machine permits it. The list of system calls is always applied."""


class Program(msgspec.Struct, frozen=True):
    """Generated code, and a test which may use the names that the code leaves, as stand-ins in another process."""

    code: str
    test: str


class Limits(msgspec.Struct, frozen=True):
    """Of each of a program's two processes; the paper of HumanEval gives 3 s (arXiv:2107.03374)."""

    cpu_s: int = 5
    wall_s: float = 30.0
    memory_bytes: int = 1 << 30


class Verdict(msgspec.Struct, frozen=True):
    """What came of a program."""

    outcome: Literal["passed", "failed", "ended", "time", "refused"]
    """ended: by itself, before its tests did; time: limited; refused: not run, as nothing would confine it."""
    detail: str = ""
    held: list[str] = []
    """What confined it: namespaces, landlock, seccomp."""


def run_all(
    programs: Sequence[Program],
    limits: Limits | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
    layers: Sequence[str] = LAYERS,
) -> list[Verdict]:
    """A verdict each, in their order. What `watch` raises ends it, and nothing is left running.

    Raises InputError where this machine can't confine them.
    """
    verdicts: list[Verdict] = []
    with scratch() as root, ThreadPoolExecutor(processor.cores(Path("/"))) as workers:
        waiting = [workers.submit(run, program, root, limits or Limits(), layers) for program in programs]
        try:
            for future in waiting:
                verdicts.append(future.result())
                watch(len(verdicts), len(programs))
        finally:
            workers.shutdown(cancel_futures=True)
    return verdicts


def run(program: Program, root: str, limits: Limits, layers: Sequence[str] = LAYERS) -> Verdict:
    """One program, confined. `root` is an empty folder. Raises InputError where this machine can't confine it."""
    order = {**msgspec.to_builtins(program), **msgspec.to_builtins(limits), "root": root, "layers": list(layers)}
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-B", "-c", _START, str(ROOT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd="/", env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}, start_new_session=True,
    )  # fmt: skip
    try:
        said, complaint = process.communicate(json.dumps(order).encode(), limits.wall_s)
    except subprocess.TimeoutExpired:
        return Verdict("time")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if not said:
        raise _refusal(complaint.decode(errors="replace").strip().rpartition("\n")[2])
    verdict = msgspec.json.decode(said, type=Verdict)
    if verdict.outcome == "refused":
        raise _refusal(verdict.detail)
    return verdict


@functools.cache
def check() -> tuple[str, ...]:
    """The layers that hold here, after code that tried what it must not was refused all of it.

    Raises InputError on a machine that can't confine code.
    """
    if sys.platform != "linux":
        raise _refusal(_("only Linux can do it"))
    with scratch() as root, tempfile.NamedTemporaryFile() as secret:
        verdict = run(Program(_BURGLAR.replace("SECRET", repr(secret.name)), _WATCHMAN), root, Limits())
    if verdict.outcome != "passed":
        raise _refusal(verdict.detail or verdict.outcome)
    return tuple(verdict.held)


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """An empty folder that only this account can enter, for `run`."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        yield folder


def _refusal(reason: str) -> InputError:
    return InputError(
        _("Generated code can't be confined on this machine, and is not run: {reason}.").format(reason=reason),
        _("Evaluate on Linux 5.13 or newer, or where a process may make user namespaces."),
    )


_BURGLAR = """
import os, socket
def tries():
    deeds = {"network": socket.socket, "process": os.fork, "signal": lambda: os.kill(os.getppid(), 0),
             "file": lambda: open(SECRET), "process table": lambda: open("/proc/self/mem")}
    done = []
    for name, deed in deeds.items():
        try:
            deed()
            done.append(name)
        except OSError:
            pass
    return done
"""
_WATCHMAN = "assert tries() == [], tries()"
