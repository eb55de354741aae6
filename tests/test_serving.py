"""Serving as a job: the engine's process, the address and the key, and the real engine with OpenAI's own client."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from serving_help import KEY, inhabitants, plan, server, standin_interpreter, until

from toolbox import ports, runs
from toolbox.engines import ENGINES
from toolbox.errors import BusyError, EngineError, InputError
from toolbox.serving import view
from toolbox.serving.engine_process import EngineProcess, Patience

QUICK = Patience(start_s=5, watch_every_s=0.2, answer_s=1, backoff_s=0.01, restarts=2, end_s=10)


def engine(folder: Path, script: str, patience: Patience = QUICK) -> EngineProcess:
    """An engine that runs `script`; its port is sys.argv[1]."""
    folder.mkdir(exist_ok=True)
    return EngineProcess(
        lambda port: [sys.executable, "-c", textwrap.dedent(script), str(port)],
        health="/health", cwd=folder, environ={"PATH": os.environ["PATH"]}, key="k", log_path=folder / "engine.log",
        patience=patience,
    )  # fmt: skip


def test_an_engine_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ended before it answered\. OSError: no weights here") as caught:
        asyncio.run(engine(tmp_path, "raise OSError('no weights here')").keep())
    assert str(tmp_path / "engine.log") in caught.value.remedy


def test_an_engine_that_never_answers_is_given_up_and_leaves_nothing_behind(tmp_path: Path) -> None:
    hung = """
        import subprocess, sys, time
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
        subprocess.Popen([sys.executable, "-c", stubborn])
        time.sleep(99)
    """
    with pytest.raises(EngineError, match="did not answer within 1 s"):
        asyncio.run(engine(tmp_path, hung, Patience(start_s=1, end_s=10)).keep())
    until(lambda: inhabitants(tmp_path) == [])


ANSWERS_ONCE = """
    import http.server, os, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0
        def do_GET(self):
            Handler.asked += 1
            if Handler.asked == {dies_at}: os._exit(3)
            self.send_response({status} if Handler.asked > 1 else 200); self.end_headers()
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize(("dies_at", "status"), [(2, 200), (0, 503)], ids=["dies", "says that it is ill"])
def test_an_engine_is_restarted_a_bounded_number_of_times(tmp_path: Path, dies_at: int, status: int) -> None:
    process = engine(tmp_path, ANSWERS_ONCE.format(dies_at=dies_at, status=status))
    with pytest.raises(EngineError, match="died 3 times"):
        asyncio.run(process.keep())
    assert process.restarts == 2
    assert process.url is None
    until(lambda: inhabitants(tmp_path) == [])


STOPS_ITSELF = """
    import http.server, os, signal, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0
        def do_GET(self):
            Handler.asked += 1
            if Handler.asked == 2: os.kill(os.getpid(), signal.SIGSTOP)
            self.send_response(200); self.end_headers()
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.slow
def test_an_engine_that_lives_and_answers_nothing_is_ended(tmp_path: Path) -> None:
    patience = Patience(start_s=30, watch_every_s=0.1, answer_s=0.3, restarts=0, end_s=10)
    process = engine(tmp_path, STOPS_ITSELF, patience)
    with pytest.raises(EngineError, match="died 1 times"):
        asyncio.run(process.keep())
    until(lambda: inhabitants(tmp_path) == [])


def test_the_engine_ends_with_a_job_that_is_killed(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", "serve", plan(standin_interpreter(tmp_path / "python")))
    job = run.start()
    until(lambda: run.status().state == "ready")
    folder = run.path / "engine"
    assert len(inhabitants(folder)) == 2
    os.kill(job, signal.SIGKILL)
    os.waitpid(job, 0)
    until(lambda: inhabitants(folder) == [])
    assert run.status().state == "lost"


def test_the_job_drains_and_ends_on_sigterm(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", "serve", plan(standin_interpreter(tmp_path / "python")))
    job = run.start({"YCDY_API_KEY": KEY})
    until(lambda: run.status().state == "ready")
    facts = run.result()
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    headers = {"Authorization": f"Bearer {facts['api_key']}"}
    with httpx.stream(
        "POST", facts["url"] + "/v1/chat/completions", json=body, headers=headers, trust_env=False
    ) as answer:
        run.stop()
        assert b"[DONE]" in answer.read()
    until(lambda: not run.alive())
    os.waitpid(job, 0)
    assert (run.status().state, run.result()["requests"]) == ("done", 1)
    assert inhabitants(run.path / "engine") == []
    kept = {path.name for path in run.path.rglob("*") if path.is_file() and KEY in path.read_text(errors="replace")}
    assert kept == {"api_key"}
    assert (run.path / "api_key").stat().st_mode & 0o777 == 0o600


OUTSIDER = """
import encodings.idna, http.client, json, os, signal, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
files, pids, ports = json.loads(sys.argv[1])
met = []
def met_by(deed):
    try:
        deed()
    except PermissionError:
        met.append("refused")
    else:
        met.append("done")
for path in files:
    met_by(lambda: open(path).read())
for pid in pids:
    met_by(lambda: open(f"/proc/{pid}/environ", "rb").read())
    met_by(lambda: os.kill(pid, signal.SIGTERM))
for port in ports:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", b"{}")
    met.append(connection.getresponse().status)
print(json.dumps(met))
"""
"""Somebody else's attempts to read, stop and call; what each met with."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_of_the_machine_can_not_read_stop_or_call_a_server() -> None:
    """Attack row 14."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        run = runs.create(Path(folder) / "runs", "serve", plan(standin_interpreter(Path(folder) / "python")))
        job = run.start({"YCDY_API_KEY": KEY})
        until(lambda: run.status().state == "ready")
        words = json.loads((run.path / "engine" / "seen.json").read_text())["argv"]
        listening = [int(run.result()["url"].rpartition(":")[2]), int(words[words.index("--port") + 1])]
        files = [str(run.path / name) for name in ("api_key", "result.json", "log.txt")]
        pids = [job, *inhabitants(run.path / "engine")]
        command = [sys.executable, "-S", "-c", OUTSIDER, json.dumps([files, pids, listening])]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=True)
        assert json.loads(done.stdout) == ["refused"] * (len(files) + 2 * len(pids)) + [401, 401]
        assert run.alive()
        run.stop()
        os.waitpid(job, 0)


def test_a_key_is_made_on_loopback_and_demanded_elsewhere(tmp_path: Path) -> None:
    made = plan(standin_interpreter(tmp_path / "python"))
    with server(tmp_path / "runs", made, key="") as one, server(tmp_path / "runs", made, key="") as two:
        keys = {one.facts["api_key"], two.facts["api_key"]}
        assert len(keys) == 2
        assert min(map(len, keys)) > 40
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        with (
            pytest.raises(InputError, match="no API key was given"),
            server(tmp_path / "runs", plan(made.python, host=host), key=""),
        ):
            pass
    with server(tmp_path / "runs", plan(made.python, host="0.0.0.0")) as outside:
        assert outside.facts["url"].startswith("http://127.0.0.1:")
        assert outside.chat("hello").status_code == 200


def test_a_taken_port_names_the_next_free_one() -> None:
    with ports.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=f"Port {port} is taken") as caught:
            ports.listen("127.0.0.1", port)
    offered = int(caught.value.remedy.rpartition(" ")[2])
    assert port < offered <= port + ports.TRIED
    ports.listen("127.0.0.1", offered).close()
    with pytest.raises(InputError):
        ports.listen("192.0.2.7", 0)


def test_answers_leave_at_once(tmp_path: Path) -> None:
    """Without TCP_NODELAY the kernel holds an answer's second part back for the first one's acknowledgement."""
    with ports.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _address = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_an_engine_sees_weights_and_texts_and_nothing_that_could_run(tmp_path: Path) -> None:
    model = tmp_path / "模型 @ home"
    model.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "pytorch_model.bin",
        "modeling_x.py",
        "adapter_x.json",
    ):
        (model / name).write_text("{}")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "config.json", "optimizer.pt"):
        (adapter / name).write_text("{}")
    embedding = msgspec.structs.replace(ENGINES["transformers"], features=frozenset())
    assert view.make(tmp_path / "one", model, [adapter], embedding) == []
    links = {path.name: path.resolve() for path in (tmp_path / "one" / "served").iterdir()}
    assert set(links) == {
        "config.json", "model.safetensors", "tokenizer.json", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert links["tokenizer.json"] == adapter / "tokenizer.json"
    assert links["config.json"] == model / "config.json"
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="is not an adapter"):
        view.make(tmp_path / "two", model, [adapter], ENGINES["lmdeploy"])


@pytest.mark.parametrize(
    ("config", "temperature"),
    [({}, 0), ({"do_sample": True}, 1), ({"do_sample": True, "temperature": 0.7}, 0.7), ({"temperature": 0.7}, 0)],
)
def test_the_models_own_temperature_is_read(tmp_path: Path, config: dict[str, Any], temperature: float) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert view.default_temperature(tmp_path) == temperature
