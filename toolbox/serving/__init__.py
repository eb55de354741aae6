"""Serves a model: an engine on loopback, and in front of it the gateway that clients talk to (`serve`, `chat`)."""

import asyncio
import contextlib
import ipaddress
import os
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from toolbox import access, files, ports, templates
from toolbox.engines import ENGINES, SERVED, Engine, Launch, environment
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.plan import ServePlan
from toolbox.runs import Reporter, Run
from toolbox.serving import view
from toolbox.serving.engine_process import EngineProcess
from toolbox.serving.gateway import Gateway, Served
from toolbox.serving.limits import Limits
from toolbox.serving.log import log
from toolbox.templates import calling

LOOK_EVERY_S = 0.1
LIMITS = Limits()


def run(plan: ServePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Serve until `reporter.stopping`; tells `reporter.ready` when clients can come.

    Raises BusyError where the port is taken, InputError for an address other than loopback without a key of the
    person's own, EngineError where the engine can't be started or keeps dying, Interrupted when stopped before ready.
    """
    key = _key(plan, run)
    engine_kind = ENGINES[plan.engine]
    with ports.listen(plan.host, plan.port) as listener:
        launch = _launch(plan, run, engine_kind)
        engine = _engine(plan, run, engine_kind, launch)
        gateway = Gateway(engine, _served(plan, engine_kind, launch), key, token_counter(plan.model.path), LIMITS)
        facts = {"url": url_of(listener), "api_key": key, "pid": os.getpid(), "model": plan.default_name}
        reporter.phase(_("Starting {engine}").format(engine=plan.engine))
        asyncio.run(_serve(gateway, engine, listener, reporter, facts))
    tokens = gateway.metrics.tokens
    return {
        "url": facts["url"], "model": plan.default_name,
        "requests": gateway.metrics.requests, "restarts": engine.restarts,
        "prompt_tokens": tokens["prompt"], "completion_tokens": tokens["completion"],
    }  # fmt: skip


def url_of(listener: socket.socket) -> str:
    """The address that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else ports.LOOPBACK
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def token_counter(model: Path) -> Callable[[str], int]:
    """How many tokens a text has, by the model's own tokenizer; guessed from its bytes where that is absent."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return lambda text: len(text.encode()) // 4
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _key(plan: ServePlan, run: Run) -> str:
    """The person's own key (YCDY_API_KEY, or the one kept in the run), else a new one, on loopback only."""
    path = run.path / "api_key"
    key = os.environ.pop("YCDY_API_KEY", "") or (path.read_text().strip() if path.is_file() else "")
    access.check(plan.host, key)
    key = key or access.new_key()
    files.write_text(path, key + "\n")
    return key


def _launch(plan: ServePlan, run: Run, engine: Engine) -> Launch:
    tuned = view.make(run.path / "engine", plan.model.path, [adapter.path for adapter in plan.adapters], engine)
    template = plan.model.chat_template or (run.path / "engine" / SERVED / templates.FILE).is_file()
    return Launch(
        adapters=tuple(zip(tuned, tuned, strict=True)), port=0, dtype=plan.dtype, device=plan.device.kind,
        chat_template=template, calls=calling.style(view.template(run.path / "engine" / SERVED)),
        max_lora_rank=max((_rank(adapter.path) for adapter in plan.adapters), default=0),
        memory_free=plan.device.memory_free_bytes / plan.device.memory_total_bytes,
    )  # fmt: skip


def _rank(adapter: Path) -> int:
    """The largest r of an adapter: modules may have one of their own."""
    config = files.read_json(adapter / "adapter_config.json") or {}
    return max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])


def _engine(plan: ServePlan, run: Run, engine: Engine, launch: Launch) -> EngineProcess:
    folder, key = run.path / "engine", access.new_key()
    return EngineProcess(
        lambda port: engine.command(plan.python, msgspec.structs.replace(launch, port=port)),
        health=engine.health, cwd=folder, log_path=run.path / "engine.log",
        environ=environment(folder / "cache", plan.device.kind, plan.device.index, key), key=key,
    )  # fmt: skip


def _served(plan: ServePlan, engine: Engine, launch: Launch) -> Served:
    adapters = [adapter.name for adapter in plan.adapters]
    tuned = [engine.adapter_id.format(adapter=name) for name, _folder in launch.adapters]
    # An embedded adapter is the only model that its engine has; else the base is one more.
    names = dict(zip([*adapters, plan.name], [*tuned, launch.model], strict=False))
    return Served(
        names=names, base=plan.name, context=plan.model.max_position_embeddings,
        temperature=view.default_temperature(plan.model.path), ignores=engine.ignores,
        created=int((plan.model.path / "config.json").stat().st_mtime),
    )  # fmt: skip


async def _serve(
    gateway: Gateway, engine: EngineProcess, listener: socket.socket, reporter: Reporter, facts: dict[str, Any]
) -> None:
    server = _Server(_config(gateway))
    keeping = asyncio.create_task(engine.keep())
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    ready = False
    try:
        while not (reporter.stopping or keeping.done() or answering.done()):
            if engine.url and not ready:
                ready = True
                reporter.phase(_("Serving"))
                reporter.ready(**facts)
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        log("stopping", in_flight=gateway.metrics.in_flight)
        server.should_exit = True
        await answering
        if not keeping.done():
            keeping.cancel()
        await asyncio.wait([keeping])
        await gateway.close()
    if not keeping.cancelled():
        await keeping
    if not ready:
        raise Interrupted(_("Stopped before the engine answered."))


def _config(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.app, http=_Protocol, ws="none", lifespan="off", log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=LIMITS.connections, timeout_keep_alive=30,
        timeout_graceful_shutdown=int(LIMITS.drain_s),
    )  # fmt: skip


class _Server(uvicorn.Server):
    """uvicorn, except that signals stay with the job: it knows that one means stop and two mean now."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """HTTP/1.1, except that a connection which never completes its first request's headers is closed after a while."""

    _late: TimerHandle

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(LIMITS.headers_s, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
