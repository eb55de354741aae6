"""Hostile words in every option of every command, and in every question of the menu: words stay words."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from toolbox import cli, embedded, options
from toolbox.commands import VERBS, Command

HOSTILE = [
    ";touch x",
    "$(touch x)",
    "`touch x`",
    "a\ntouch x",
    "-x",
    "--",
    'it\'s "quoted"',
    "模型；。",
    "\x1b]0;x\x07",
    "",
]
COMMANDS = [command for verb in VERBS for command in verb.commands()]
CASES = [(command, field) for command in COMMANDS for field in options.fields(command.options)]
NOBODY = "http://127.0.0.1:1"
NEEDED: dict[str, list[str]] = {
    "download": [str(embedded.MODEL)],
    "serve": ["--model", "demo", "--port", "0"],
    "finetune": ["--model", "demo", "--dataset", "demo-persona"],
    "merge": ["--model", "demo"],
    "evaluate": ["--model", "demo"],
    "chat": ["--model", "demo"],
    "plan": ["--model", "demo"],
    "config set": ["lang", "zh"],
}
"""What makes each command get as far as it can with one word of it hostile; the rest needs nothing."""


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in, and hubs that nobody answers at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)


@pytest.mark.parametrize(("command", "field"), CASES, ids=[f"{c.name} {f.name}" for c, f in CASES])
def test_every_option_of_every_command(
    command: Command, field: options.Field, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in HOSTILE:
        status = cli.main(line(command, field, value))
        said = capsys.readouterr()
        assert status in (0, 1, 2), (value, said)
        harmless(tmp_path, said.out + said.err)
        if status:
            assert said.err.startswith("✗ "), said.err
            assert len(said.err.splitlines()) <= 2, said.err


def line(command: Command, field: options.Field, value: str) -> list[str]:
    """The command line in which `value` stands for the option, and all else is as it should be."""
    needed = NEEDED.get(command.name, [])
    if field.positional:
        fields = [other for other in options.fields(command.options) if other.positional]
        words = [needed[place] if place < len(needed) else "last" for place in range(len(fields))]
        words[fields.index(field)] = value
        return [*command.name.split(), "--dry-run", "--yes", "--", *words]
    if field.flag in needed:
        place = needed.index(field.flag)
        needed = needed[:place] + needed[place + 2 :]
    positional = [other for other in options.fields(command.options) if other.positional and other.required]
    words = needed or ["last"] * len(positional)
    return [*command.name.split(), *words, "--dry-run", "--yes", f"{field.flag}={value}"]


def harmless(folder: Path, said: str) -> None:
    """Nothing was executed, nobody read a traceback, and nothing was unforeseen."""
    assert "Traceback" not in said
    assert "\x1b]" not in said
    assert not [path for path in folder.rglob("*") if path.name == "x"]
    assert not (folder / "home" / "crash.txt").exists(), (folder / "home" / "crash.txt").read_text()


@pytest.mark.parametrize("value", [value for value in HOSTILE if value and "\n" not in value])
def test_every_question_of_the_menu(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in VERBS:
        if verb.number and verb.name not in ("doctor", "demo"):
            lines = f"{verb.number}\n" + f"{value}\n" * 8
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
            assert cli.main([]) == 0
            said: Any = capsys.readouterr()
            harmless(tmp_path, said.out + said.err)
