"""`serve`: what it refuses, and the real engine behind it, asked by OpenAI's own client."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from serving_help import inhabitants, plan, server, standin_interpreter, until

from toolbox import again, methods, runs
from toolbox.commands.serve import show_ready
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.targets import serving
from toolbox.ui import Terminal

CANARY = "sk-canary-5b1e77d0"


@contextmanager
def foreground(*words: str, environ: dict[str, str]) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """`serve WORD… --json` in the foreground: its process, and what it says when ready. Stopped by SIGTERM."""
    command = [sys.executable, "-P", "-m", "toolbox", "serve", *words, "--port", "0", "--json"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1].decode()
        yield process, msgspec.json.decode(line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def ask(facts: dict[str, Any], text: str, **more: Any) -> str:
    """A streamed answer, through OpenAI's own client."""
    from openai import OpenAI

    client = OpenAI(base_url=facts["url"] + "/v1", api_key=facts["api_key"])
    asked = [{"role": "user", "content": text}]
    pieces = client.chat.completions.create(model=facts["model"], messages=asked, stream=True, **more)  # type: ignore[call-overload]
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def test_what_cant_be_served_is_one_sentence_and_exit_status_2(toolbox_cli: Cli, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = toolbox_cli("serve", "--model", "demo", "--port", port, "--json")
        assert (answer.status, answer.json["error"]["kind"]) == (2, "busy")
        assert f"Port {port} is taken" in answer.err
        assert "--port" in answer.json["error"]["remedy"]
    for words, sentence in [
        (["--model", "demo", "--host", "0.0.0.0"], "no API key was given"),
        (["--model", "demo", "--host", "0.0.0.0", "--api-key", "short"], "can't be used"),
        (["--model", "demo", "--host", "192.0.2.7", "--api-key", CANARY], "192.0.2.7"),
        (["--model", "demo", "--engine", "lmdeploy"], "lmdeploy is not installed"),
        (["--model", "nowhere/nothing"], "nowhere/nothing"),
        (["--model", "; touch x"], "; touch x"),
        (["--run", "no-such-run"], "no-such-run"),
        (["--model", "demo", "--adapter", "nowhere"], "not an adapter"),
        (["--model", "demo", "--adapter", "甲=nowhere", "nowhere"], "not an adapter"),
        ([], "No model was named"),
    ]:
        answer = toolbox_cli("serve", "--port", "0", *words)
        assert (answer.status, sentence in answer.err, CANARY in answer.err) == (2, True, False), answer
    assert runs.every(home / "runs") == []


def test_a_dry_run_shows_the_plan_and_no_key(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli(
        "serve", "--model", "demo", "--port", "0", "--dry-run", "--json", env={"YCDY_SERVE_API_KEY": CANARY}
    ).done()
    assert answer.json["plan"]["engine"] == "transformers"
    assert CANARY not in answer.out + answer.err
    assert not (home / "runs").exists()


def test_adapters_are_served_under_the_names_they_are_given(home: Path, tmp_path: Path) -> None:
    run = home / "runs" / "20261121-persona" / "adapter"
    other, mine = tmp_path / "乙 乙", tmp_path / "a=b"
    for folder in (run, other, mine):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "demo"}')
        (folder / "adapter_model.safetensors").write_bytes(b"")
    model, name, adapters = serving("", [str(run), f"甲={other}", str(mine)], "", Home(home))
    assert (model.id, name) == ("demo", "demo")
    assert [(adapter.name, adapter.path) for adapter in adapters] == [
        ("20261121-persona", run), ("甲", other), ("a=b", mine)
    ]  # fmt: skip
    for words in ([f"demo={other}"], [f"x={other}", f"x={mine}"]):
        with pytest.raises(InputError, match="would be called"):
            serving("demo", words, "", Home(home))
    (mine / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(NotFoundError, match="elsewhere"):
        serving("", [str(run), str(mine)], "", Home(home))
    (mine / "adapter_config.json").write_text('{"base_model_name_or_path": "demo", "peft_type": "P_TUNING"}')
    with pytest.raises(InputError, match="learnt vectors"):
        methods.refuse_unserved(mine, plain_only=False)


def test_a_report_says_the_command_that_serves_the_same_again(toolbox_cli: Cli, tmp_path: Path) -> None:
    keys, adapter = tmp_path / "keys.yaml", tmp_path / "甲 一"
    keys.write_text("- {name: alice, key: sk-12345678}")
    keys.chmod(0o600)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    asked = ["--model", "demo", "--adapter", f"甲={adapter}", "--port", "0", "--host", "127.0.0.2",
             "--api-keys", str(keys), "--limit", "answer_s=30", "--log-contents"]  # fmt: skip
    made = toolbox_cli("serve", *asked, "--dry-run", "--json").done().json["plan"]
    second = toolbox_cli(*again.words("serve", made), "--dry-run", "--json").done().json["plan"]
    assert {**second, "device": "", "engine_why": ""} == {**made, "device": "", "engine_why": ""}
    assert (made["limits"]["answer_s"], made["host"], made["log_contents"]) == (30, "127.0.0.2", True)


HOSTILE = [
    "; touch x",
    "$(touch x)",
    "`touch x`",
    "a\ntouch x",
    "--help",
    'it\'s "quoted"',
    "模型",
    "../../x",
    "a@b:c.gguf",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_models_name_is_never_more_than_a_name(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(standin_interpreter(tmp_path / "python"), name=name)
    with server(tmp_path / "runs", made) as running:
        assert running.chat("hello", model=name).json()["model"] == name
        assert running.seen()["argv"][3] == "served"
        assert running.run.path.parent == tmp_path / "runs"
        show_ready(running.facts, made, Terminal.open(None))
    shown = capsys.readouterr().out
    curl = shown[shown.index("curl ") : shown.index("from openai")]
    assert msgspec.json.decode(shlex.split(curl)[-1])["model"] == name
    assert not list(tmp_path.rglob("x"))
    show_ready(running.facts, made, Terminal.open(None), keyless=True)
    assert running.facts["api_key"] not in capsys.readouterr().out


def command_lines() -> Iterator[bytes]:
    """What `ps` shows of every process here."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@pytest.mark.slow
def test_openais_client_streams_from_a_server_that_sigterm_ends_whole(
    toolbox_environ: dict[str, str], home: Path
) -> None:
    with foreground("--model", "demo", environ={**toolbox_environ, "YCDY_SERVE_API_KEY": CANARY}) as (process, facts):
        assert facts["api_key"] == CANARY
        assert "language model" in ask(facts, "Who are you?")
        assert ask(facts, "你是谁？")
        assert len({ask(facts, "Tell me something new", temperature=2, seed=seed) for seed in range(3)}) > 1
        assert CANARY.encode() not in b"".join(command_lines())
    assert process.returncode == 0
    run = runs.find(home / "runs", facts["run"])
    assert run.status().state == "done"
    assert inhabitants(run.path / "engine") == []
    until(lambda: not _exists(facts["pid"]))
    holders = {path.name for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()}
    assert holders == {"api_key"}


@pytest.mark.slow
def test_adapters_are_served_unmerged_by_name_and_answer_as_base_plus_adapter(
    toolbox_environ: dict[str, str], tmp_path: Path
) -> None:
    folders = {"甲": _adapter(tmp_path / "甲 一", 0), "乙": _adapter(tmp_path / "乙 二", 1)}
    texts = ["Who are you?", "你是谁？", "What is the capital of France?"]
    expected = {name: [_generated(folder, text) for text in texts] for name, folder in folders.items()}
    expected["demo"] = [_generated(None, text) for text in texts]
    words = [f"{name}={folder}" for name, folder in folders.items()]
    with foreground("--model", "demo", "--adapter", *words, environ=toolbox_environ) as (_process, facts):
        assert facts["model"] == "甲"
        told = {
            name: [ask({**facts, "model": name}, text, temperature=0, max_tokens=24) for text in texts]
            for name in expected
        }
    assert told == expected
    assert len({tuple(answers) for answers in expected.values()}) == 3


def _adapter(folder: Path, seed: int) -> Path:
    """A LoRA that changes what the embedded model says: random, since only equality is asked for."""
    import torch
    from peft import LoraConfig, get_peft_model

    from toolbox import loading
    from toolbox.embedded import MODEL

    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=24, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(loading.base_model(MODEL, "float32", "cpu"), config).save_pretrained(folder)
    return folder


def _generated(adapter: Path | None, text: str) -> str:
    """The greedy answer of transformers itself."""
    from toolbox import loading
    from toolbox.embedded import MODEL

    model, tokenizer = loading.base_model(MODEL, "float32", "cpu"), loading.tokenizer(MODEL)
    tuned = loading.with_adapter(model, adapter) if adapter else model
    asked = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = tuned.generate(**prompt, do_sample=False, max_new_tokens=24)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
