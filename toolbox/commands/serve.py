"""`serve`: a model, alone or with an adapter, on an OpenAI-compatible port of its own."""

import os
import platform
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, devices, differing, known
from toolbox.commands import engines as environments
from toolbox.engines import Name, Own
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.device import Device
    from toolbox.engines import Engine
    from toolbox.models import ModelFacts
    from toolbox.plan import ServedAdapter, ServePlan
    from toolbox.runs import Run

PORT = 8080
AUTODL, AUTODL_PORT = Path("/root/autodl-tmp"), 6006
"""AutoDL's boxes forward one port to the outside, and no other."""


class TargetOptions(msgspec.Struct, kw_only=True):
    """What is served: a model (and an adapter), or what a run made."""

    model: Annotated[
        str, option(N_("Model: demo, a folder, or OWNER/NAME"), ask=True, choices="models", unless="run")
    ] = ""
    adapter: Annotated[
        list[str],
        option(
            N_("Adapter folders, served unmerged on top of the model, each under its name"),
            metavar="[NAME=]DIR",
            choices="adapters",
        ),
    ] = []
    run: Annotated[
        str,
        option(N_("What a finetune or merge run made, in place of model and adapters"), ask=True, choices="tuned"),
    ] = ""


class ServeOptions(TargetOptions, kw_only=True):
    """What `serve` takes: a model (and an adapter), or a run."""

    engine: Annotated[
        Literal["auto", Name],
        option(N_("Serving engine; auto: the first of vllm, sglang, lmdeploy that is installed, else transformers")),
    ] = "auto"
    install: Annotated[
        Literal["", Own], option(N_("Install this engine, as `engines install` does, and serve nothing"))
    ] = ""
    host: Annotated[str, option(N_("Address to listen on; any but 127.0.0.1 needs a key of your own"))] = "127.0.0.1"
    port: Annotated[
        int | None, option(N_("Port; 0: any free one; default: 8080, on AutoDL 6006"), ask=True, ge=0, le=65535)
    ] = None
    api_key: Annotated[
        str,
        option(
            N_(
                "API key that clients must send; none: a new one is made. YCDY_SERVE_API_KEY keeps it off process lists"
            ),
            metavar="KEY",
            secret=True,
        ),
    ] = ""
    api_keys: Annotated[
        str, option(N_("YAML file, mode 0600, of more keys and what each may ask a minute and at once"), metavar="FILE")
    ] = ""
    limit: Annotated[
        list[str], option(N_("Bounds of requests, as body_bytes=1000000 answer_s=300"), metavar="NAME=VALUE")
    ] = []
    log_contents: Annotated[
        bool, option(N_("Write what is asked and answered into the log, which otherwise has none of it"))
    ] = False
    unit: Annotated[
        Literal["", "systemd", "compose"],
        option(N_("Start nothing, but write what keeps this server up: a systemd unit, or a compose file")),
    ] = ""
    background: Annotated[bool, option(N_("Return when the server is ready, and leave it running"))] = False


def run(options: ServeOptions, session: Session) -> dict[str, Any]:
    """Start a server; stay with it until Ctrl-C, SIGTERM or its end, unless it goes to the background."""
    from toolbox import access, ports

    if options.install:
        return environments.install(environments.NameOptions(name=options.install), session)
    if options.api_key or not options.api_keys:
        access.check(options.host, options.api_key)
    plan = make_plan(options, session)
    if options.unit:
        return _keep_up(options, plan, session)
    ports.listen(plan.host, plan.port).close()
    if session.dry_run:
        show_plan(plan, session)
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    job = _begin(plan, options.api_key, session)
    with _stopped_with_me(job):
        facts = _answering(job, session)
        if plan.log_contents:
            session.say(_("What is asked and answered is written into {path}.").format(path=job.log_path))
        # A key of the person's own is not repeated into a journal or a container's log.
        show_ready(facts, plan, session, keyless=bool(options.api_key) and not session.interactive)
        session.publish(facts)
        if options.background:
            session.say(_("It goes on in the background. To stop it: {command}").format(
                command=job.command("runs", "stop")))  # fmt: skip
            return facts
        session.say(_("Ctrl-C stops it."))
        session.follow(job, through_ready=True)
        session.say(_("The server has stopped."))
    return facts


def _keep_up(options: ServeOptions, plan: "ServePlan", session: Session) -> dict[str, Any]:
    """Write the unit or the compose file of the planned server, and say how it is started."""
    from toolbox import services

    show_plan(plan, session)
    if session.dry_run:
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    made = services.write(options.unit, plan, session.home, options.api_key)
    session.say("\n".join([
        _("Written: {path}").format(path=made.path),
        _("Its API key is in {path}, which nobody else can read.").format(path=made.secrets),
        _("To keep the server up, also over restarts of the machine:"),
        *(f"  {command}" for command in made.commands),
    ]))  # fmt: skip
    return {"path": str(made.path), "secrets": str(made.secrets), "commands": made.commands}


def make_plan(options: ServeOptions, session: Session) -> "ServePlan":
    """Everything that is decided before the server starts. Raises InputError for what can't be served."""
    from toolbox import access, engines, limits, methods
    from toolbox.errors import InputError
    from toolbox.plan import ServePlan
    from toolbox.targets import serving

    bounds = limits.parse(options.limit)
    keys = Path(options.api_keys).expanduser().absolute() if options.api_keys else None
    if keys:
        access.read_keys(keys)
    known.warn(options.model, session)
    model, name, adapters = serving(options.model, options.adapter, options.run, session.home)
    _refuse_own_code(model)
    differing.show(model.path, [adapter.path for adapter in adapters], session)
    best = devices.best(session)
    engine, why = engines.choose(options.engine, best.kind == "cuda", session.home, quantization=model.quantization)
    for adapter in adapters:
        methods.refuse_unserved(adapter.path, plain_only=engine.own_interpreter)
    _refuse_together(adapters, engine)
    python = engine.interpreter(session.home)
    if python is None:
        raise InputError(_("The engine {name} is not installed.").format(name=engine.name))
    return ServePlan(
        entry="toolbox.serving:run", model=model, adapters=adapters, name=name, device=best,
        engine=engine.name, engine_why=why, python=python, dtype=_dtype(best, model), host=options.host,
        port=_port(options.port), api_keys=keys, limits=bounds, log_contents=options.log_contents,
    )  # fmt: skip


def _refuse_own_code(model: "ModelFacts") -> None:
    """No engine is given a repository's code, whatever was agreed to: it talks to the network for weeks."""
    from toolbox.errors import InputError

    if model.own_code:
        raise InputError(
            _("{model} needs program code of its own repository, which no serving engine is given.").format(
                model=model.id
            ),
            _("It can be trained, merged and evaluated; to serve it, take a model that transformers knows by itself."),
        )


def _refuse_together(adapters: "list[ServedAdapter]", engine: "Engine") -> None:
    """Raise InputError where `engine` can't serve these adapters at once, each as it was trained."""
    from toolbox import templates
    from toolbox.errors import InputError

    if len(adapters) > 1 and "adapters" not in engine.features:
        raise InputError(
            _("The engine {name} serves one adapter at a time.").format(name=engine.name),
            _("Serve the others on ports of their own, or with another engine: see doctor"),
        )
    paths = [adapter.path / templates.FILE for adapter in adapters]
    if "templates" not in engine.features and len({path.is_file() and path.read_bytes() for path in paths}) > 1:
        raise InputError(
            _("These adapters were trained with different chat templates, and {name} has one for all.").format(
                name=engine.name
            ),
            _("Serve them on ports of their own."),
        )


def _begin(plan: "ServePlan", key: str, session: Session) -> "Run":
    """Start the job."""
    from toolbox import runs

    job = runs.create(session.home.runs, f"serve-{runs.undated(plan.default_name)}", plan)
    job.start({"YCDY_API_KEY": key} if key else None)
    return job


def _answering(job: "Run", session: Session) -> dict[str, Any]:
    """Until it answers; `url api_key pid run model`. Raises what ended the job where it never got that far."""
    session.follow(job)
    return {**job.result(), "run": job.id}


def show_plan(plan: "ServePlan", session: Session) -> None:
    rows = [
        (_("Model"), plan.default_name), (_("Base model"), str(plan.model.path)),
        (_("Adapter"), "\n".join(f"{adapter.name}: {adapter.path}" for adapter in plan.adapters) or "-"),
        (_("Engine"), f"{plan.engine} ({plan.engine_why})"), (_("Device"), plan.device.name),
        (_("Precision"), plan.dtype), (_("Address"), f"{plan.host}:{plan.port}"),
    ]  # fmt: skip
    session.table(_("Plan"), ("", ""), rows)


@contextmanager
def _stopped_with_me(job: "Run") -> Iterator[None]:
    """SIGINT and SIGTERM end the server too, whichever line of ours they meet."""
    before = {number: signal.signal(number, lambda *_: job.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _port(port: int | None) -> int:
    if port is not None:
        return port
    return AUTODL_PORT if os.access(AUTODL, os.W_OK) else PORT


def _dtype(best: "Device", model: "ModelFacts") -> Literal["auto", "float32", "float16"]:
    """The weights' own precision where the device computes in it; a quantised model decides for itself."""
    if model.quantization or best.bf16 or model.dtype != "bfloat16":
        return "auto"
    return "float16" if best.kind == "cuda" else "float32"


def show_ready(facts: dict[str, Any], plan: "ServePlan", session: Session, keyless: bool = False) -> None:
    """What a person copies: curl, Python, and the tunnel from another machine. `keyless`: with a key to be put in."""
    url, key, name = facts["url"], "KEY" if keyless else facts["api_key"], facts["model"]
    port = url.rpartition(":")[2]
    body = msgspec.json.encode({"model": name, "messages": [{"role": "user", "content": _("Hello")}]}).decode()
    others = [each for each in (*(adapter.name for adapter in plan.adapters), plan.name) if each != name]
    session.say("\n".join([
        "", _("Serving {model} at {url}").format(model=name, url=f"{url}/v1"),
        *([_("Other models of this server: {names}").format(names=", ".join(others))] if others else []),
        _("API key: the one that was given") if keyless else _("API key: {key}").format(key=key), "",
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"  -H {shlex.quote(f'Authorization: Bearer {key}')} \\\n  -d {shlex.quote(body)}", "",
        "from openai import OpenAI\n"
        f"client = OpenAI(\n    base_url={url + '/v1'!r},\n    api_key={key!r},\n)\n"
        f"messages = [{{'role': 'user', 'content': {_('Hello')!r}}}]\n"
        f"answer = client.chat.completions.create(model={name!r}, messages=messages)\n"
        "print(answer.choices[0].message.content)", "",
        _("From your own computer, where this is a remote machine:"),
        f"ssh -N -L {port}:127.0.0.1:{port} {os.environ.get('USER') or 'root'}@{platform.node()}", "",
    ]))  # fmt: skip


COMMANDS = (Command("serve", N_("Serve a model on an OpenAI-compatible port"), ServeOptions, run),)
