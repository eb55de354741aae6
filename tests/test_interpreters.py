"""Environments of engines and tools: really made by the start script, from a lock of tiny wheels."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkouts import new_checkout, wheel
from tests.conftest import ROOT, Answer


class Toolbox:
    """This program in a checkout of its own, whose locks name one thing to install: tiny."""

    def __init__(self, folder: Path) -> None:
        self.checkout = new_checkout(folder, folder / "empty")
        self.wheels = folder / "wheels"
        shutil.rmtree(self.checkout.root / "toolbox")
        (self.checkout.root / "toolbox").symlink_to(ROOT / "toolbox")
        self.lock = self.checkout.root / "locks" / "tiny.txt"
        self.lock.write_text(wheel(self.wheels, "1.0"))
        self.home = folder / "home"

    def popen(self, *words: str, **settings: str) -> "subprocess.Popen[str]":
        environ = {**os.environ, **self.checkout.environ, "YCDY_HOME": str(self.home), **settings}
        environ = {name: value for name, value in environ.items() if name != "YCDY_LOCK" and value}
        environ["PYTHONPATH"] = str(self.checkout.root)
        command = [sys.executable, "-P", "-m", "toolbox", *words]
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, text=True)

    def call(self, *words: str, **settings: str) -> Answer:
        process = self.popen(*words, **settings)
        out, err = process.communicate(timeout=100)
        return Answer(process.returncode, out, err)

    @property
    def version(self) -> str:
        """What is installed, as its own interpreter says."""
        python = self.home / "engines" / "tiny" / "bin" / "python"
        return subprocess.run(
            [python, "-c", "import tiny; print(tiny.VERSION)"], capture_output=True, text=True
        ).stdout.strip()

    def listed(self) -> dict[str, object]:
        (tiny,) = self.call("engines", "list", "--json").done().json["engines"]
        return tiny


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    return Toolbox(tmp_path)


def test_install_shows_what_it_takes_first(toolbox: Toolbox) -> None:
    shown = toolbox.call("engines", "install", "tiny", "--dry-run")
    assert "tiny 1.0; 1 in all, each with its hash" in shown.out + shown.err
    assert not (toolbox.home / "engines" / "tiny").exists()


@pytest.mark.slow
def test_install_makes_what_the_lock_says(toolbox: Toolbox) -> None:
    done = toolbox.call("engines", "install", "tiny", "--yes", "--json").done()
    assert done.json == {"name": "tiny", "path": str(toolbox.home / "engines" / "tiny"), "installed": True}
    assert toolbox.version == "1.0"
    assert [path.name for path in (toolbox.home / "engines").iterdir()] == ["tiny"]


@pytest.mark.slow
def test_a_change_can_be_taken_back_and_a_failed_one_leaves_what_was_there(toolbox: Toolbox) -> None:
    refused = toolbox.call("engines", "install", "huge", "--json")
    assert (refused.status, refused.json["error"]["remedy"]) == (2, "There are: tiny.")
    toolbox.call("engines", "install", "tiny", "--yes").done()
    toolbox.call("engines", "install", "tiny", "--yes", PIP_FIND_LINKS="/nowhere").done()  # nothing to do
    right = wheel(toolbox.wheels, "2.0")
    toolbox.lock.write_text(right[:-9] + "00000000\n")
    failed = toolbox.call("engines", "install", "tiny", "--yes", "--json")
    assert (failed.status, "it is as it was before" in failed.json["error"]["message"]) == (1, True)
    assert "does not match the hash" in failed.err
    assert (toolbox.version, toolbox.listed()["stale"]) == ("1.0", True)
    toolbox.lock.write_text(right)
    toolbox.call("engines", "install", "tiny", "--yes").done()
    assert (toolbox.version, toolbox.listed()["previous"]) == ("2.0", True)
    toolbox.call("engines", "rollback", "tiny", PIP_FIND_LINKS="/nowhere").done()
    listed = toolbox.listed()
    assert (toolbox.version, listed["pinned"], listed["stale"]) == ("1.0", True, True)
    toolbox.call("engines", "install", "tiny", "--yes").done()
    assert (toolbox.version, toolbox.listed()["pinned"]) == ("2.0", False)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_install_that_is_cut_off_leaves_no_environment_and_the_next_makes_it(
    toolbox: Toolbox, how: signal.Signals
) -> None:
    slow = toolbox.home.with_name("slow")
    slow.write_text(f'#!/bin/sh\ncase $2 in venv) touch {slow}.began; sleep 3;; esac\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    cut = toolbox.popen("engines", "install", "tiny", "--yes", "--json", YCDY_PYTHON=str(slow))
    while not Path(f"{slow}.began").exists():
        assert cut.poll() is None, cut.communicate()
        time.sleep(0.02)
    cut.send_signal(how)
    out, err = cut.communicate(timeout=60)
    if how == signal.SIGINT:
        assert (cut.returncode, json.loads(out)["error"]["kind"]) == (130, "interrupted"), err
        assert not toolbox.listed()["installed"]
    toolbox.call("engines", "install", "tiny", "--yes").done()
    assert toolbox.version == "1.0"
