"""`chat`: talking through the gateway, from a pipe and in a terminal, to a server of its own or one that runs."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest
from conftest import Cli
from serving_help import Server, inhabitants, plan, server, standin_interpreter, until

from toolbox import client, runs
from toolbox.config import Home, Settings
from toolbox.errors import EngineError, InputError
from toolbox.runs import Run


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("chat")
    with server(folder / "runs", plan(standin_interpreter(folder / "python"))) as running:
        yield running


@pytest.fixture
def running(home: Path, tmp_path: Path) -> Iterator[Run]:
    """A server job of the embedded model, in front of a stand-in engine."""
    run = runs.create(home / "runs", "serve", plan(standin_interpreter(tmp_path / "python")))
    pid = run.start()
    until(lambda: run.status().state == "ready")
    yield run
    run.stop()
    os.waitpid(pid, 0)


def talk(gateway: Server, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}]}
    return "".join(client.stream(gateway.facts["url"], gateway.facts["api_key"], body))


def test_the_client_gives_an_answer_in_pieces_and_every_failure_as_one_of_ours(gateway: Server) -> None:
    assert talk(gateway, "hello") == "0\u20281\u20282\u2028"
    with pytest.raises(client.ContextFullError):
        talk(gateway, "x " * 20_000)
    with pytest.raises(InputError, match="refused: Server is pinned"):
        talk(gateway, "refuse")
    for text in ("fail", "fail halfway"):
        with pytest.raises(EngineError, match="engine failed"):
            talk(gateway, text)
    with pytest.raises(InputError, match="API key"):
        list(client.stream(gateway.facts["url"], "wrong", {"messages": []}))
    with pytest.raises(EngineError, match="does not answer"):
        list(client.stream("http://127.0.0.1:9", "key", {"messages": []}))


def test_a_piped_conversation_with_a_server_that_runs_already(toolbox_cli: Cli, running: Run, home: Path) -> None:
    lines = ["one", "/system be brief", "two", "", "/nonsense", "fail", "/save", "/reset", "three", "/quit", "never"]
    answer = toolbox_cli("chat", "--model", "demo", "--json", input="\n".join(lines)).done()
    assert answer.json == {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "0\u20281\u20282\u2028"},
        ],
    }
    [saved] = (home / "chats").iterdir()
    roles = [message["role"] for message in msgspec.json.decode(saved.read_bytes())["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert "The server failed" in answer.err
    assert "/nonsense" in answer.err
    assert running.status().state == "ready"
    assert len(runs.every(home / "runs")) == 1


def test_every_command_of_a_conversation(toolbox_cli: Cli, running: Run, home: Path) -> None:
    lines = [
        "/regenerate", "/set temperature 0.7", "/set top-p=0.5", "/set stop 。", "/set temperature 3", "/set seed x",
        "/set nonsense 1", "/set seed 7", '"""one', "  two", 'three"""', "/regenerate", "/history", "/model",
        "/model no", "/set", "/help", "refuse", "/set seed", "/save mine.jsonl", "/save mine.jsonl", "你好",
    ]  # fmt: skip
    answer = toolbox_cli("chat", "--model", "demo", "--max-tokens", "9", "--json", input="\n".join(lines)).done()
    said = "0\u20281\u20282\u2028"
    assert [(message["role"], message["content"]) for message in answer.json["messages"]] == [
        ("user", "one\n  two\nthree"), ("assistant", said), ("user", "你好"), ("assistant", said)]  # fmt: skip
    for words in ("There is no answer yet", "temperature can't be '3'", "seed can't be 'x'", "no setting 'nonsen",
                  "user: one\n  two\nthree", "* demo", "no model 'no'", "/regenerate", "is there already"):  # fmt: skip
        assert words in answer.err, words
    assert msgspec.json.decode((home.parent / "mine.jsonl").read_bytes())["messages"][0]["content"].startswith("one")
    sent = msgspec.json.decode((running.path / "engine" / "seen.json").read_bytes())["body"]
    assert (sent["temperature"], sent["top_p"], sent["stop"], sent["max_tokens"]) == (0.7, 0.5, ["。"], 9)
    assert sent.get("seed") is None


PROMPT = "2C"
"""prompt_toolkit draws the prompt and then moves the cursor two columns to the right."""


@contextmanager
def terminal_chat(environ: dict[str, str]) -> Iterator["pexpect.spawn[str]"]:
    """`chat` in a terminal, at its prompt."""
    words = ["-P", "-m", "toolbox", "chat", "--model", "demo"]
    terminal = pexpect.spawn(sys.executable, words, env=environ, timeout=90, encoding="utf-8")
    try:
        terminal.expect("/help")
        terminal.expect(PROMPT)
        yield terminal
    finally:
        terminal.close(force=True)


def test_ctrl_c_stops_the_answer_first_and_then_the_conversation(
    toolbox_environ: dict[str, str], running: Run, home: Path
) -> None:
    with terminal_chat(toolbox_environ) as terminal:
        terminal.send("endless\r")
        terminal.expect("3\u2028?4")
        terminal.sendintr()
        terminal.expect("stopped")
        terminal.expect(PROMPT)
        terminal.send("hello\r")
        terminal.expect("0.1.2")
        terminal.expect(PROMPT)
        terminal.send("half a line")
        terminal.expect("a line")
        terminal.sendintr()
        terminal.send("hello\r")
        terminal.expect("0.1.2")
        terminal.expect(PROMPT)
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0
    assert not (home / "chats").exists(), "what was typed is not remembered unasked"


def test_lines_are_edited_brought_back_and_remembered_where_that_is_wanted(
    toolbox_environ: dict[str, str], running: Run, home: Path
) -> None:
    """Wide letters, another line by Alt-Enter, the line before by arrow-up; the file is its owner's only."""
    Home(home).save_settings(Settings(chat_history=True))
    with terminal_chat(toolbox_environ) as terminal:
        terminal.send("你们好\x1b[D\x1b[D\x7f\x1b\r行\r")
        terminal.expect("0.1.2")
        terminal.expect(PROMPT)
        terminal.send("\x1b[A\x1b[A！\r")
        terminal.expect("0.1.2")
        terminal.expect(PROMPT)
        terminal.send("/save\r")
        terminal.expect("Saved")
        terminal.send("/quit\r")
        terminal.expect(pexpect.EOF)
    [saved] = (home / "chats").glob("*.jsonl")
    asked = [message["content"] for message in msgspec.json.decode(saved.read_bytes())["messages"]][::2]
    assert asked == ["行们好", "！\n行们好"]
    history = home / "chats" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "们好" in history.read_text("utf-8")


def test_a_dry_run_starts_nothing(toolbox_cli: Cli, home: Path) -> None:
    shown = toolbox_cli("chat", "--model", "demo", "--dry-run", "--json").done().json
    assert shown["plan"]["model"]["id"] == "demo"
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_a_server_of_its_own_ends_with_the_conversation(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("chat", "--model", "demo", "--json", input="Who are you?\n你是谁？\n").done()
    said = [message["content"] for message in answer.json["messages"] if message["role"] == "assistant"]
    assert "language model" in said[0]
    assert "语言模型" in said[1]
    assert said[0] in answer.err
    _ended(home)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_of_its_own_ends_with_a_chat_that_is_told_to(
    toolbox_environ: dict[str, str], home: Path, number: signal.Signals
) -> None:
    with terminal_chat(toolbox_environ) as terminal:
        terminal.kill(number)
        terminal.expect(pexpect.EOF)
    _ended(home)


def _ended(home: Path) -> None:
    [run] = runs.every(home / "runs")
    until(lambda: not run.alive())
    assert run.status().state == "done"
    assert inhabitants(run.path / "engine") == []


def test_what_models_say_cannot_steer_the_terminal(gateway: Server, capsys: Any) -> None:
    from toolbox.ui import Terminal

    session = Terminal.open(None)
    session.write("a\x1b[2Jb\x07\n")
    assert capsys.readouterr().out == "a[2Jb\n"
