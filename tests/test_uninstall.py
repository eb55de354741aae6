"""`uninstall` says what goes and what stays, and deletes only that; always in a checkout and a home of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Answer
from tests.plans import finetune_plan
from toolbox import runs


class Installed:
    """A checkout with an environment, and a home with an engine, a unit, a run, a model and settings."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "一锤 定音", folder / "home"
        self.root.mkdir()
        (self.root / "toolbox").symlink_to(ROOT / "toolbox")
        (self.root / "locks").symlink_to(ROOT / "locks")
        self.goes = [self.root / ".venv", self.root / ".venv.before", self.home / "engines" / "vllm"]
        for path in self.goes:
            (path / "bin").mkdir(parents=True)
            (path / "bin" / "python").write_text("")
            (path / "locks").mkdir()
        self.goes.append(self.home / "services" / "ycdy-demo.service")
        self.stays = [self.home / "models" / "owner" / "name", self.home / "settings.json"]
        for path in (self.goes[-1], *self.stays):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        self.run = runs.create(self.home / "runs", "one", finetune_plan(self.home))
        self.stays.append(self.run.path)

    def call(self, *words: str, typed: str = "") -> Answer:
        environ = {**os.environ, "PYTHONPATH": str(self.root), "YCDY_HOME": str(self.home)}
        command = [sys.executable, "-P", "-m", "toolbox", "uninstall", *words]
        done = subprocess.run(command, env=environ, input=typed, capture_output=True, text=True, timeout=60)
        return Answer(done.returncode, done.stdout, done.stderr)

    def left(self) -> tuple[list[bool], list[bool]]:
        return [path.exists() for path in self.goes], [path.exists() for path in self.stays]


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def test_what_an_environment_shares_with_the_one_before_counts_once(tmp_path: Path) -> None:
    here = Installed(tmp_path)
    now, before, *_others = here.goes
    (now / "torch").write_bytes(bytes(5000))
    (before / "torch").hardlink_to(now / "torch")
    (before / "old").write_bytes(bytes(700))
    going = json.loads(here.call("--dry-run", "--json").out.splitlines()[-1])["goes"]
    assert [part["bytes"] for part in going if part["path"] in (str(now), str(before))] == [5000, 700]


def test_what_can_be_installed_again_goes_and_what_was_made_stays(installed: Installed) -> None:
    shown = installed.call("--dry-run", "--json").done().json
    assert {each["path"] for each in shown["goes"]} == {str(path) for path in installed.goes}
    assert {Path(each["path"]).name for each in shown["stays"]} == {"models", "runs", "settings.json"}
    assert installed.left() == ([True] * 4, [True] * 3)
    done = installed.call("--yes")
    assert "systemctl --user disable --now ycdy-demo" in done.out + done.err
    assert done.status == 0
    assert installed.left() == ([False] * 4, [True] * 3)


@pytest.mark.slow
def test_data_goes_only_with_words_typed_and_nothing_while_a_run_is_alive(installed: Installed) -> None:
    held = installed.run.lock()
    refused = installed.call("--yes", "--json")
    os.close(held)
    assert (refused.status, refused.json["error"]["kind"]) == (2, "busy")
    assert installed.call("--data", "--yes", typed="yes\n").status == 0
    assert installed.left() == ([True] * 4, [True] * 3)
    installed.call("--data", typed="yes, delete my data\n").done()
    assert installed.left() == ([False] * 4, [False] * 3)
