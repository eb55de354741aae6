"""Serves a model: an engine on loopback, and in front of it the gateway that clients talk to (`serve`, `chat`)."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import access, files, ports, templates
from toolbox.engines import ENGINES, SERVED, Engine, Launch, environment
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.limits import Limits
from toolbox.plan import ServePlan
from toolbox.runs import Reporter, Run
from toolbox.serving import connection, view
from toolbox.serving.accounts import Accounts
from toolbox.serving.engine_process import EngineProcess, Patience
from toolbox.serving.gateway import Gateway, Served
from toolbox.templates import calling

LOOK_EVERY_S = 0.1


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
        accounts = Accounts(key, access.read_keys(plan.api_keys) if plan.api_keys else [])
        gateway = Gateway(
            engine, _served(plan, engine_kind, launch), accounts, token_counter(plan.model.path), plan.limits,
            log_contents=plan.log_contents,
        )  # fmt: skip
        facts = {"url": url_of(listener), "api_key": key, "pid": os.getpid(), "model": plan.default_name}
        reporter.phase(_("Starting {engine}").format(engine=plan.engine))
        asyncio.run(_serve(gateway, plan.limits, engine, listener, reporter, facts))
    metrics = gateway.metrics
    return {
        "url": facts["url"], "model": plan.default_name,
        "requests": metrics.requests, "restarts": engine.restarts,
        "prompt_tokens": metrics.tokens("prompt"), "completion_tokens": metrics.tokens("completion"),
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
    if not (plan.api_keys and not key):
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
        memory_free=plan.device.memory_free_bytes / plan.device.memory_total_bytes, context=_context(plan, engine),
    )  # fmt: skip


def _context(plan: ServePlan, engine: Engine) -> int:
    return min(plan.model.max_position_embeddings, engine.context or plan.model.max_position_embeddings)


def _rank(adapter: Path) -> int:
    """The largest r of an adapter: modules may have one of their own."""
    config = files.read_json(adapter / "adapter_config.json") or {}
    return max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])


def _engine(plan: ServePlan, run: Run, engine: Engine, launch: Launch) -> EngineProcess:
    folder, key = run.path / "engine", access.new_key()
    return EngineProcess(
        lambda port: engine.command(plan.python, msgspec.structs.replace(launch, port=port)),
        health=engine.health, cwd=folder, log_path=run.path / "engine.log",
        patience=Patience(stuck_s=plan.limits.stuck_s),
        environ=environment(folder / "cache", plan.device.kind, plan.device.index, key) | engine.environ, key=key,
    )  # fmt: skip


def _served(plan: ServePlan, engine: Engine, launch: Launch) -> Served:
    adapters = [adapter.name for adapter in plan.adapters]
    tuned = [engine.adapter_id.format(adapter=name) for name, _folder in launch.adapters]
    # An embedded adapter is the only model that its engine has; else the base is one more.
    names = dict(zip([*adapters, plan.name], [*tuned, launch.model], strict=False))
    return Served(
        names=names, base=plan.name, context=_context(plan, engine),
        temperature=view.default_temperature(plan.model.path), features=engine.features, ignores=engine.ignores,
        created=int((plan.model.path / "config.json").stat().st_mtime),
    )  # fmt: skip


async def _serve(
    gateway: Gateway, limits: Limits, engine: EngineProcess, listener: socket.socket, reporter: Reporter,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    server = connection.Server(connection.config(gateway.app, limits))
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
        await gateway.drain()
        server.should_exit = True
        await answering
        if not keeping.done():
            keeping.cancel()
        await asyncio.wait([keeping])
    if not keeping.cancelled():
        await keeping
    if not ready:
        raise Interrupted(_("Stopped before the engine answered."))
