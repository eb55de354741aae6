"""An engine as a process: started on a free loopback port, watched, restarted a few times, ended whole."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec

from toolbox import ports
from toolbox.errors import EngineError
from toolbox.i18n import _
from toolbox.serving import upstream
from toolbox.serving.log import log

OK = 200
LEASH = Path(__file__).with_name("leash.py")


class Patience(msgspec.Struct, kw_only=True, frozen=True):
    """How long an engine is waited for, in seconds, and how often it is started again."""

    start_s: float = 1800.0
    """A large model is read from a slow disk: a dead process is seen at once, only a silent one waits this long."""
    look_every_s: float = 0.25
    watch_every_s: float = 5.0
    answer_s: float = 30.0
    silences: int = 3
    """Health checks in a row without an answer after which a living process counts as hung."""
    restarts: int = 5
    backoff_s: float = 1.0
    """Before the first restart; doubled before each further one."""
    stable_s: float = 60.0
    """After this long in good health earlier failures are forgiven."""
    stuck_s: float = 300.0
    """An engine that is streaming answers and has sent nothing for so long counts as hung."""
    end_s: float = 10.0


class EngineProcess:
    """Keeps one engine running. `url` is where it answers, and None while it does not."""

    def __init__(
        self,
        command: Callable[[int], list[str]],
        *,
        health: str,
        cwd: Path,
        environ: dict[str, str],
        key: str,
        log_path: Path,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        """`command` makes the command line for a port; `health` is the path that answers 200 once it can serve.

        `key` is what requests bring; `environ` has told the engine.
        """
        self._command, self._health, self._cwd, self._environ = command, health, cwd, environ
        self._log_path, self._patience = log_path, patience
        self.headers = {"authorization": f"Bearer {key}"}
        self._process: Process | None = None
        self._base = ""
        self.url: str | None = None
        self.restarts = 0
        self.streams = 0
        self.moved_at = 0.0

    @property
    def pid(self) -> int:
        """The leader of the engine's process group; 0 before it was started."""
        return self._process.pid if self._process else 0

    async def keep(self) -> None:
        """Start the engine and keep it running until cancelled.

        Raises EngineError when it never answers at first, or has died more often than it is restarted.
        """
        failures, ready = 0, False
        try:
            while True:
                began = time.monotonic()
                await self._start()
                try:
                    await self._until_healthy()
                    ready, self.url = True, self._base
                    log("engine_ready", pid=self.pid, seconds=round(time.monotonic() - began, 2))
                    reason = await self._watch()
                except EngineError as error:
                    if not ready:
                        raise
                    reason = error.message
                self.url = None
                await self._end()
                failures = 1 if time.monotonic() - began > self._patience.stable_s else failures + 1
                log("engine_died", reason=reason, failures=failures)
                if failures > self._patience.restarts:
                    raise self._error(_("The engine died {count} times.").format(count=failures))
                await asyncio.sleep(self._patience.backoff_s * 2 ** (failures - 1))
                self.restarts += 1
        finally:
            self.url = None
            await self._end()

    async def _start(self) -> None:
        port = ports.free()
        self._base = f"http://{ports.LOOPBACK}:{port}"
        with self._log_path.open("ab") as file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(LEASH), *self._command(port),
                stdin=PIPE, stdout=file, stderr=file, cwd=self._cwd, env=self._environ, start_new_session=True,
            )  # fmt: skip
        log("engine_started", pid=self.pid, port=port)

    async def _until_healthy(self) -> None:
        patience = self._patience
        deadline = time.monotonic() + patience.start_s
        while time.monotonic() < deadline:
            if self._dead():
                raise self._error(_("The engine ended before it answered."))
            if await self._answers(patience.answer_s) == OK:
                return
            await asyncio.sleep(patience.look_every_s)
        raise self._error(_("The engine did not answer within {seconds:.0f} s.").format(seconds=patience.start_s))

    async def _watch(self) -> str:
        """Returns why, once the engine is dead, says that it is ill, has stopped answering, or writes no more.

        One that is busy may be too slow to say how it is, as long as its answers go on.
        """
        patience, silences = self._patience, 0
        while True:
            if await self._ended_within(patience.watch_every_s):
                return f"exit status {self._process.returncode if self._process else '?'}"
            asked_at = time.monotonic()
            if self.streams and asked_at - self.moved_at > patience.stuck_s:
                return f"nothing written for {patience.stuck_s:.0f} s"
            answer = await self._answers(patience.answer_s)
            well = answer == OK or self.moved_at > asked_at
            silences = 0 if well else silences + 1
            if silences >= patience.silences:
                return f"health answered {answer}" if answer else "health did not answer"

    async def _answers(self, timeout: float) -> int:
        """The HTTP status of the health route; 0 for none."""
        try:
            async with asyncio.timeout(timeout):
                answer = await upstream.ask(self._base, self._health, self.headers, method="GET")
        except (TimeoutError, upstream.BrokenOffError):
            return 0
        answer.close()
        return answer.status

    async def _ended_within(self, seconds: float) -> bool:
        if self._process is None:
            return True
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _dead(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def _end(self) -> None:
        """End the whole process group: the leash asks first, then kills; whatever is left we kill."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), self._patience.end_s)
        except TimeoutError:
            log("engine_killed", pid=process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _error(self, what: str) -> EngineError:
        why = _last_words(self._log_path)
        return EngineError(f"{what} {why}".strip(), _("What it said is in {log}.").format(log=self._log_path))


def _last_words(path: Path, size: int = 4096) -> str:
    """The last line that an engine wrote, where there is one."""
    try:
        text = path.read_bytes()[-size:].decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
