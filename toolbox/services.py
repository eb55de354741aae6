"""What keeps a planned server up: a systemd user unit, or a compose file, in HOME/services (`serve --unit`)."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import access, environment, files
from toolbox.config import Home
from toolbox.engines import ENGINES
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.limits import Limits
from toolbox.plan import ServePlan

KEY = "YCDY_SERVE_API_KEY"
IMAGE = "localhost/yichuidingyin"
INSIDE = Path("/data")
"""HOME in the image."""
PLAIN = re.compile(r"[\w.~-]+", re.ASCII)
"""What means the same in both kinds of file of variables, systemd's and compose's."""

UNIT = """\
# {name}: {command}
[Unit]
Description=yichuidingyin: {name}

[Service]
Type=exec
ExecStart={start}
EnvironmentFile={secrets}
WorkingDirectory={home}
Restart=on-failure
RestartSec=10
# Refused outright (a wrong option, a model that is gone): starting again would not help.
RestartPreventExitStatus=2
# Stopped before it was ready.
SuccessExitStatus=130
# The server stops its engine itself, and lets answers that are under way end.
KillMode=mixed
TimeoutStopSec={stop_s:.0f}
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `secrets` holds the key, mode 0600; the other file has none."""

    name: str
    path: Path
    secrets: Path
    commands: list[str]
    """What a person runs next, in order."""


def write(kind: str, plan: ServePlan, home: Home, key: str) -> Service:
    """Write the unit ("systemd") or the compose file ("compose") that starts this server, and the file with its key.

    `key`: the person's own; else the one that is there already, else a new one, so that it stays over restarts. Raises
    InputError for a key with signs that such files change.
    """
    name = "ycdy-" + (re.sub(r"[^a-z0-9]+", "-", plan.default_name.lower()).strip("-") or "server")
    folder = home.prepare().path / "services"
    folder.mkdir(mode=0o700, exist_ok=True)
    secrets = folder / f"{name}.env"
    key = key or _kept(secrets) or access.new_key()
    if not PLAIN.fullmatch(key):
        raise InputError(
            _("This API key can't stand in a file of variables."), _("Take one of letters, digits and . _ ~ - only.")
        )
    files.write_text(secrets, f"{KEY}={key}\n", mode=0o600)
    if kind == "systemd":
        path, text = folder / f"{name}.service", unit(name, plan, home, secrets)
        commands = [f"systemctl --user enable --now {shlex.quote(str(path))}", "loginctl enable-linger"]
    else:
        path, text = folder / f"{name}.compose.yaml", compose(name, plan, home, secrets)
        commands = [_building(plan), f"docker compose -f {shlex.quote(str(path))} up -d"]
    files.write_text(path, text)
    return Service(name=name, path=path, secrets=secrets, commands=commands)


def _kept(secrets: Path) -> str:
    return secrets.read_text().strip().partition("=")[2] if secrets.is_file() else ""


def unit(name: str, plan: ServePlan, home: Home, secrets: Path) -> str:
    """A systemd user unit. Values are quoted as systemd.syntax(7) has it."""
    script = environment.ROOT / "yichuidingyin.sh"
    words = [str(script), *_words(plan, home, plan.host, lambda path: path), "--home", str(home.path)]
    return UNIT.format(
        name=name, command=shlex.join(words), start=" ".join(map(_quoted, ["/bin/bash", *words])),
        secrets=_escaped(str(secrets)), home=_escaped(str(home.path)), stop_s=plan.limits.drain_s + 50,
    )  # fmt: skip


def compose(name: str, plan: ServePlan, home: Home, secrets: Path) -> str:
    """A compose file: read-only but for HOME and /tmp, without capabilities, as the owner of HOME."""
    import yaml

    mounts, owner = {home.path: INSIDE}, home.path.stat()
    words = _words(plan, home, "0.0.0.0", lambda path: _inside(path, mounts))
    published = "127.0.0.1" if access.is_loopback(plan.host) else plan.host
    port = plan.port or 8080
    service: dict[str, Any] = {
        "image": _image(plan),
        "command": words,
        "env_file": [str(secrets)],
        "ports": [f"{published}:{port}:{port}"],
        "volumes": [
            {"type": "bind", "source": str(source), "target": str(target), "read_only": target != INSIDE}
            for source, target in mounts.items()
        ],
        "user": f"{owner.st_uid}:{owner.st_gid}",  # without capabilities root may not write for another
        "read_only": True,
        "tmpfs": ["/tmp:exec,mode=1777"],  # what is compiled there is also run
        "shm_size": "2g",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{plan.limits.drain_s + 50:.0f}s",
        "healthcheck": {
            "test": ["CMD", "env", "PYTHONPATH=/opt/yichuidingyin", "/opt/yichuidingyin/.venv/bin/python", "-P",
                     "/opt/yichuidingyin/docker/healthcheck.py"],
            "interval": "30s", "timeout": "10s", "start_period": "600s", "retries": 3,
        },
    }  # fmt: skip
    if plan.device.kind == "cuda":
        gpu = {"driver": "nvidia", "device_ids": [str(plan.device.index)], "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [gpu]}}}
    text = yaml.safe_dump({"name": name, "services": {name: service}}, sort_keys=False, allow_unicode=True, width=120)
    return text.replace("$", "$$")  # a single one begins a variable


def _image(plan: ServePlan) -> str:
    return f"{IMAGE}:{'cuda' if plan.device.kind == 'cuda' else 'cpu'}"


def _building(plan: ServePlan) -> str:
    """The command that builds the image with the engine in it."""
    target = _image(plan).rpartition(":")[2]
    own = ["--build-arg", f"ENGINES={plan.engine}"] if ENGINES[plan.engine].own_interpreter else []
    return shlex.join(["docker", "build", "--target", target, *own, "-t", _image(plan), str(environment.ROOT)])


def _words(plan: ServePlan, home: Home, host: str, place: Callable[[Path], Path]) -> list[str]:
    """The words that start this server; `place` says where a path is found then."""
    model = plan.model.path
    found = model.is_relative_to(home.models) or model.is_relative_to(environment.ROOT / "toolbox" / "embedded")
    said = ["serve", "--model", plan.model.id if found else str(place(model))]
    said += ["--adapter", *(f"{each.name}={place(each.path)}" for each in plan.adapters)] if plan.adapters else []
    said += ["--engine", plan.engine, "--host", host, "--port", str(plan.port or 8080)]
    said += ["--api-keys", str(place(plan.api_keys))] if plan.api_keys else []
    usual = msgspec.structs.asdict(Limits())
    changed = [f"{name}={value}" for name, value in msgspec.structs.asdict(plan.limits).items() if usual[name] != value]
    said += ["--limit", *changed] if changed else []
    return [*said, "--log-contents"] if plan.log_contents else said


def _inside(path: Path, mounts: dict[Path, Path]) -> Path:
    """Where the container finds `path`; a folder outside of HOME gets a mount of its own."""
    for source, target in mounts.items():
        if path.is_relative_to(source):
            return target / path.relative_to(source)
    return mounts.setdefault(path, Path("/mounted") / str(len(mounts)) / path.name)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    if PLAIN.fullmatch(word.replace("/", "")):
        return word
    inner = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_escaped(inner)}"'
