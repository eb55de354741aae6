"""What `serve --unit` writes: it starts the planned server, holds no secret, and systemd understands it."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import Cli
from serving_help import plan, until

from toolbox import ports, services
from toolbox.config import Home
from toolbox.device import Device
from toolbox.errors import InputError
from toolbox.limits import Limits
from toolbox.plan import ServedAdapter, ServePlan

GPU = Device(kind="cuda", name="GPU X", memory_total_bytes=8 << 30, memory_free_bytes=4 << 30, bf16=True)


@pytest.fixture
def odd_home(tmp_path: Path) -> Home:
    """A home folder whose name holds all that units and shells read as something else."""
    return Home(tmp_path / "a b $HOME %h 数据")


def planned(tmp_path: Path, **changes: object) -> ServePlan:
    adapters = [ServedAdapter("甲", tmp_path / "elsewhere")]
    return plan(Path("/python"), **{"adapters": adapters, "port": 8123, **changes})


def words_of(unit: Path) -> list[str]:
    """What systemd would start: its quoting is that of shells, but for doubled % and $."""
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.removeprefix("ExecStart="))]


def test_a_unit_starts_this_server_and_keeps_its_key_apart(tmp_path: Path, odd_home: Home) -> None:
    made = services.write("systemd", planned(tmp_path, limits=Limits(answer_s=60.0)), odd_home, "")
    assert words_of(made.path)[2:] == [
        "serve", "--model", "demo", "--adapter", f"甲={tmp_path}/elsewhere", "--engine", "transformers", "--host",
        "127.0.0.1", "--port", "8123", "--limit", "answer_s=60.0", "--home", str(odd_home.path),
    ]  # fmt: skip
    key = made.secrets.read_text().strip().removeprefix("YCDY_SERVE_API_KEY=")
    assert key.startswith("sk-")
    assert key not in made.path.read_text()
    assert stat.S_IMODE(made.secrets.stat().st_mode) == 0o600
    again = services.write("compose", planned(tmp_path), odd_home, "")
    assert again.secrets.read_text().strip().endswith(key), "clients keep their key"
    assert key not in again.path.read_text()
    with pytest.raises(InputError, match="can't stand in a file of variables"):
        services.write("systemd", planned(tmp_path), odd_home, 'sk-"quoted"$x')


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, odd_home: Home) -> None:
    made = services.write("systemd", planned(tmp_path), odd_home, "")
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", made.path], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_compose_file_gives_the_server_what_it_needs_and_no_more(tmp_path: Path, odd_home: Home) -> None:
    adapter = ServedAdapter("own", odd_home.runs / "r" / "adapter")
    elsewhere = planned(tmp_path)
    made = services.write(
        "compose", planned(tmp_path, device=GPU, adapters=[*elsewhere.adapters, adapter]), odd_home, ""
    )
    assert made.commands[0].startswith("docker build --target cuda -t localhost/yichuidingyin:cuda ")
    (service,) = yaml.safe_load(made.path.read_text().replace("$$", "$"))["services"].values()
    assert service["volumes"][0]["source"] == str(odd_home.path)
    assert service["command"] == [
        "serve", "--model", "demo", "--adapter", "甲=/mounted/1/elsewhere", "own=/data/runs/r/adapter", "--engine",
        "transformers", "--host", "0.0.0.0", "--port", "8123",
    ]  # fmt: skip
    assert [(each["target"], each["read_only"]) for each in service["volumes"]] == [
        ("/data", False), ("/mounted/1/elsewhere", True)
    ]  # fmt: skip
    assert service["ports"] == ["127.0.0.1:8123:8123"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert (service["read_only"], service["cap_drop"], service["restart"]) == (True, ["ALL"], "unless-stopped")
    assert "healthcheck.py" in service["healthcheck"]["test"][-1]


@pytest.mark.slow
def test_what_a_unit_starts_serves_until_it_is_told_to_stop(toolbox_cli: Cli, home: Path, tmp_path: Path) -> None:
    port = ports.free()
    made = toolbox_cli("serve", "--model", "demo", "--port", str(port), "--unit", "systemd", "--json").done().json
    name, _equals, key = Path(made["secrets"]).read_text().strip().partition("=")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "YCDY_ENV": sys.prefix, name: key}
    log = tmp_path / "server.log"
    with log.open("wb") as said:
        server = subprocess.Popen(words_of(Path(made["path"])), env=environ, cwd=home, stdout=said, stderr=said)

    def status(route: str = "/v1/models", **headers: str) -> int:
        try:
            url = f"http://127.0.0.1:{port}{route}"
            return httpx.get(url, headers=headers, trust_env=False, timeout=60).status_code
        except httpx.TransportError:
            return 0

    until(lambda: status("/health") == 200 or server.poll() is not None, 300)
    assert (status(), status(Authorization=f"Bearer {key}")) == (401, 200), log.read_text()
    server.send_signal(signal.SIGTERM)
    assert server.wait(120) == 0, log.read_text()
    assert status() == 0
