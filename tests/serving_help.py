"""What the tests of serving share: a server in a thread, in front of a stand-in engine."""

import contextlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from toolbox import models, runs
from toolbox.config import Home
from toolbox.device import Device
from toolbox.plan import ServePlan
from toolbox.runs import Run, Silent
from toolbox.serving import run as serve

STANDIN = Path(__file__).with_name("standin_engine.py")
KEY = "sk-canary-3f9d1c"
CPU = Device(kind="cpu", name="a processor", memory_total_bytes=1 << 34, memory_free_bytes=1 << 33, bf16=False)


def standin_interpreter(path: Path) -> Path:
    """A program that stands where an engine's Python would, and starts the stand-in engine instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(STANDIN))} "$@"\n')
    path.chmod(0o755)
    return path


def plan(python: Path, **changes: Any) -> ServePlan:
    """A plan that serves the embedded model with the engine at `python`."""
    made = ServePlan(
        entry="toolbox.serving:run", model=models.resolve("demo", Home(Path("/nowhere"))), device=CPU, name="demo",
        engine="transformers", python=python, port=0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


class Stoppable(Silent):
    """A Reporter that a test stops, and that keeps what `ready` was told."""

    stopping = False

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.is_ready = threading.Event()

    def ready(self, **facts: Any) -> None:
        self.facts = facts
        self.is_ready.set()


class Server(msgspec.Struct):
    """A server that runs in a thread of this process."""

    run: Run
    facts: dict[str, Any]
    client: httpx.Client
    result: dict[str, Any]
    reporter: Stoppable

    def stop(self) -> None:
        self.reporter.stopping = True

    @property
    def engine_folder(self) -> Path:
        return self.run.path / "engine"

    def seen(self) -> dict[str, Any]:
        """What the stand-in engine saw: argv, environ, path and body of the last request."""
        return msgspec.json.decode((self.engine_folder / "seen.json").read_bytes())

    def chat(self, text: Any, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **more}
        return self.client.post("/v1/chat/completions", json=body)


@contextmanager
def server(folder: Path, made: ServePlan, key: str = KEY, start_s: float = 100) -> Iterator[Server]:
    """Serve `made` until the block ends; `result` is filled then."""
    run = runs.create(folder, "serve", made)
    if key:
        os.environ["YCDY_API_KEY"] = key
    reporter, result, failure = Stoppable(), {}, []

    def work() -> None:
        try:
            result.update(serve(made, run, reporter))
        except BaseException as error:  # handed to the test below
            failure.append(error)
        finally:
            reporter.is_ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert reporter.is_ready.wait(start_s)
    if failure:
        raise failure[0]
    headers = {"Authorization": f"Bearer {reporter.facts['api_key']}"}
    try:
        with httpx.Client(base_url=reporter.facts["url"], headers=headers, timeout=60, trust_env=False) as client:
            yield Server(run, reporter.facts, client, result, reporter)
    finally:
        reporter.stopping = True
        thread.join(60)
    assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true, and fail where it does not."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.05)


def inhabitants(folder: Path) -> list[int]:
    """The processes whose working folder is `folder`: an engine's, and its leash's."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == folder:
                found.append(int(link.parent.name))
    return found
