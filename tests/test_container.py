"""The image, really built and run as a stranger would: uid 1000, a read-only root, no capabilities, one volume."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

IMAGE_TOOL = ROOT.parent / "shared" / "tools" / "image"
TAG = "localhost/yichuidingyin:test"

pytestmark = [
    pytest.mark.container,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not IMAGE_TOOL.exists() or os.geteuid() != 0, reason="the container tool is not here"),
]


@pytest.fixture(scope="module")
def image() -> str:
    subprocess.run([IMAGE_TOOL, "build", ROOT, TAG], check=True, stdin=subprocess.DEVNULL)
    return TAG


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose `data` is mounted on /data."""
    return tmp_path_factory.mktemp("container")


def run(image: str, volume: Path, *words: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IMAGE_TOOL, "run", image, *words],
        cwd=volume, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def podman_environ() -> dict[str, str]:
    """The settings with which podman finds what the container tool built."""
    settings = subprocess.run([IMAGE_TOOL, "env"], capture_output=True, text=True, check=True).stdout
    return {**os.environ, **dict(word.split("=", 1) for word in settings.split() if "=" in word)}


def test_help_and_self_check(image: str, volume: Path) -> None:
    done = run(image, volume, "--help")
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout
    checks = json.loads(run(image, volume, "doctor", "--json").stdout.splitlines()[-1])["checks"]
    assert {"name", "ok", "detail", "remedy"} <= set(checks[0])


def test_the_demo_runs_to_its_end_and_writes_to_the_volume_only(image: str, volume: Path) -> None:
    done = run(image, volume, "demo", "--yes", timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    owners = {path.stat().st_uid for path in (volume / "data" / "runs").iterdir()}
    assert owners == {1000}


def test_the_image_states_its_health_check_and_keeps_no_secret(image: str, podman_environ: dict[str, str]) -> None:
    done = subprocess.run(
        ["podman", "image", "inspect", image], env=podman_environ, capture_output=True, text=True, check=True
    )
    (described,) = json.loads(done.stdout)
    assert "docker/healthcheck.py" in " ".join(described["Healthcheck"]["Test"])
    assert not [line for line in described["Config"]["Env"] if "TOKEN" in line or "KEY" in line or "PIP_" in line]


def test_the_health_check_passes_where_nothing_is_served(image: str, podman_environ: dict[str, str]) -> None:
    python, check = "/opt/yichuidingyin/.venv/bin/python", "/opt/yichuidingyin/docker/healthcheck.py"
    done = subprocess.run(
        ["podman", "run", "--rm", "--pull=never", "--user", "1000:1000", "--read-only", "--entrypoint", "env", image,
         "PYTHONPATH=/opt/yichuidingyin", python, "-P", check],
        env=podman_environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
