"""Servers side by side on a processor: who answers how many clients how fast, with what memory.

    PEERS_HOME=… .venv/bin/python bench/serve.py [--model DIR] [--sides ours lf transformers …] [--rounds 3] [--schema]
    .venv/bin/python bench/serve.py overhead | soak      # what the gateway costs; ten minutes of abuse

Each side is started in turn with its own command, and asked the same chats over HTTP: greedy, 64 new tokens, float32,
1, 8 and 16 at once. Tokens are the server's own count. `ours` is the gateway with its engine, `ours-engine` that engine
alone. With --schema, answers are held to a JSON object whose one field is a text. Prints one JSON line a side, and last
the ratios at 8 clients. Memory and processor time are of all processes.
"""

import argparse
import http.client
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 8, 16)
TOKENS, READY_S, SAMPLE_S = 64, 180.0, 0.1
DEFAULTS = ("lf", "transformers", "swift")
"""Sides whose defaults are what ours is compared with."""

SCHEMA = {
    "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False,
}  # fmt: skip
HELD = {"response_format": {"type": "json_schema", "json_schema": {"name": "text", "strict": True, "schema": SCHEMA}}}


class Side(msgspec.Struct, frozen=True):
    """A server: its command for a port, its environment, and what it calls the model."""

    command: Callable[[int], list[str]]
    environ: dict[str, str]
    model: str


class Asked(msgspec.Struct, frozen=True):
    """Where and how a side is asked."""

    port: int
    model: str
    key: str
    chats: Iterator[Any]
    """Each is asked once: none finds its prompt read already."""
    more: dict[str, Any] = {}
    """What every request has besides."""


def sides(model: Path, peers: Path, home: Path) -> dict[str, Side]:
    venvs, here = peers / "venvs", str(model)
    quiet = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HOME": str(home / "hf"),
        "MODELSCOPE_CACHE": str(home / "ms"),
    }  # fmt: skip
    ours = {**quiet, "PYTHONPATH": str(ROOT), "YCDY_HOME": str(home / "ycdy"), "YCDY_SERVE_API_KEY": "sk-bench-serve"}
    own = [sys.executable, "-P", "-m"]
    swift = [
        str(venvs / "swift/bin/swift"), "deploy", "--model", here, "--model_type", "qwen2", "--template", "qwen2_5",
        "--use_hf", "true", "--infer_backend", "transformers", "--torch_dtype", "float32", "--host", "127.0.0.1",
        "--served_model_name", "small", "--max_new_tokens", str(TOKENS), "--verbose", "false",
    ]  # fmt: skip
    serve = [str(venvs / "trl/bin/transformers"), "serve", here, "--host", "127.0.0.1", "--device", "cpu",
             "--dtype", "float32"]  # fmt: skip
    sized = ["--continuous-batching", "--cb-num-blocks", "256", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"]
    lf = [str(venvs / "lf/bin/llamafactory-cli"), "api", "--model_name_or_path", here, "--template", "qwen",
          "--infer_backend", "huggingface", "--infer_dtype", "float32"]  # fmt: skip

    def at(words: list[str]) -> Callable[[int], list[str]]:
        return lambda port: [*words, "--port", str(port)]

    return {
        "ours": Side(
            at([*own, "toolbox", "serve", "--model", here, "--engine", "transformers", "--json"]), ours, model.name
        ),
        "ours-engine": Side(at([*own, "toolbox.serving.batching", here, "--dtype", "float32"]), ours, model.name),
        "lf": Side(lambda port: ["env", "API_HOST=127.0.0.1", f"API_PORT={port}", *lf], quiet, "small"),
        "transformers": Side(at(serve), quiet, here),
        "transformers-cb": Side(at([*serve, "--continuous-batching"]), quiet, here),
        "transformers-cb-sized": Side(at([*serve, *sized]), quiet, here),
        "swift": Side(at(swift), quiet, "small"),
        "swift-mbs8": Side(at([*swift, "--max_batch_size", "8"]), quiet, "small"),
    }


class Watch:
    """Memory and processor time of a process and all it started."""

    def __init__(self, pid: int) -> None:
        self._root, self.peak_bytes, self._stop = psutil.Process(pid), 0, threading.Event()
        self._ended_s: dict[int, float] = {}
        threading.Thread(target=self._sample, daemon=True).start()

    def _all(self) -> Iterator[psutil.Process]:
        with suppress(psutil.Error):
            yield from [self._root, *self._root.children(recursive=True)]

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            resident = 0
            for process in self._all():
                with suppress(psutil.Error):
                    resident += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, resident)

    def cpu_s(self) -> float:
        for process in self._all():
            with suppress(psutil.Error):
                self._ended_s[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._ended_s.values())

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def started(side: Side, log: Path) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as file:
        process = subprocess.Popen(
            side.command(port), env=side.environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    try:
        yield port, process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(asked: Asked, stream: bool = False) -> tuple[int, float]:
    """(tokens of the answer, seconds to its first piece) of one chat."""
    body = {
        "model": asked.model, "messages": next(asked.chats), "max_tokens": TOKENS,
        "temperature": 0, "stream": stream, **asked.more,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", asked.port, timeout=300)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {asked.key}"}
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        raise RuntimeError(f"{answer.status}: {answer.read(300)!r}")
    first = 0.0
    while stream and not first and (line := answer.readline()):
        if line.startswith(b"data: {") and any(
            choice["delta"].get("content") for choice in json.loads(line[5:])["choices"]
        ):
            first = time.perf_counter() - began
    said = answer.read()
    connection.close()
    return (0 if stream else json.loads(said)["usage"]["completion_tokens"]), first


def ready(asked: Asked, process: "subprocess.Popen[bytes]", began: float) -> float:
    """Seconds until the first answer was there, from the command on."""
    said, asked = "", msgspec.structs.replace(asked, chats=itertools.repeat([{"role": "user", "content": "Hello"}]))
    while time.monotonic() - began < READY_S and process.poll() is None:
        try:
            ask(asked)
            return time.monotonic() - began
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            said = str(error)
        time.sleep(0.05)
    raise RuntimeError(f"never became ready: {said}")


def measure(side: Side, chats: list[Any], rounds: int, log: Path, more: dict[str, Any]) -> dict[str, Any]:
    with started(side, log) as (port, process):
        began, watch = time.monotonic(), Watch(process.pid)
        asked = Asked(port, side.model, side.environ.get("YCDY_SERVE_API_KEY", "none"), iter(chats), more)
        out: dict[str, Any] = {"first_answer_s": round(ready(asked, process, began), 2)}
        out["first_answer_cpu_s"] = round(watch.cpu_s(), 2)
        out["first_token_s"] = round(statistics.median(ask(asked, stream=True)[1] for _ in range(3)), 3)
        for clients in CLIENTS:
            rates, per_cpu = [], []
            for _ in range(rounds):
                cpu, at = watch.cpu_s(), time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    tokens = sum(pool.map(lambda _: ask(asked)[0], range(clients)))
                rates.append(tokens / (time.perf_counter() - at))
                per_cpu.append(tokens / max(watch.cpu_s() - cpu, 1e-9))
            out[f"tokens_s_{clients}"] = round(statistics.median(rates), 1)
            out[f"tokens_cpu_s_{clients}"] = round(statistics.median(per_cpu), 1)
        with ThreadPoolExecutor(8) as pool:
            firsts = [*pool.map(lambda _: ask(asked, stream=True)[1], range(8))]
        out["first_token_s_of_8"], out["worst_of_8_s"] = round(statistics.median(firsts), 3), round(max(firsts), 3)
        watch.stop()
        out["peak_mib"] = round(watch.peak_bytes / 2**20)
        return out


def main(words: list[str]) -> None:
    if words[:1] in (["soak"], ["overhead"]):
        module = __import__(words[0])
        sys.exit(module.main(words[1:]))
    peers = Path(os.environ.get("PEERS_HOME", "peers"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=peers / "assets/small")
    parser.add_argument("--sides", nargs="+", default=["ours", "ours-engine", "lf", "transformers",
                        "transformers-cb-sized", "swift", "swift-mbs8"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--schema", action="store_true", help="hold answers to a JSON schema")
    parser.add_argument("--record", type=Path, help="docs/figures.json, from which the READMEs take what they state")
    given = parser.parse_args(words)
    with (peers / "assets/data/prompts200.jsonl").open() as file:
        chats = [json.loads(line)["messages"] for line in file]
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        all_sides = sides(given.model.resolve(), peers.resolve(), Path(folder))
        for name in given.sides:
            log = Path(folder) / f"{name}.log"
            try:
                found[name] = measure(all_sides[name], chats, given.rounds, log, HELD if given.schema else {})
            except (RuntimeError, OSError, KeyError, ValueError) as error:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
                found[name] = {"error": str(error)[:300], "said": last}
            print(json.dumps({"side": name, **found[name]}), flush=True)
    print(json.dumps(ratios(found)), flush=True)
    if given.record:
        record(found, given.record)


def record(found: dict[str, dict[str, Any]], path: Path) -> None:
    """What the READMEs state of ours, and of LLaMA-Factory's speed, as far as it was measured."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import figures

    ours, peer = found.get("ours", {}), found.get("lf", {})
    stated = {
        "serve.tokens_s": (ours.get("tokens_s_8"), "tokens/s", 0),
        "serve.lf.tokens_s": (peer.get("tokens_s_8"), "tokens/s", 0),
        "serve.first_token_s": (ours.get("first_token_s_of_8"), "s", 2),
        "serve.peak_mib": (ours.get("peak_mib"), "MiB", 0),
    }
    measured = {name: (value, unit, digits) for name, (value, unit, digits) in stated.items() if value is not None}
    figures.keep(measured, "bench/serve.py", path)


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours against each other's default, at 8 clients, by the clock and by processor time."""
    ours = found.get("ours", {})
    return {
        f"{kind} against {name}": round(ours[kind] / found[name][kind], 2)
        for name in DEFAULTS for kind in ("tokens_s_8", "tokens_cpu_s_8")
        if kind in ours and found.get(name, {}).get(kind)
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
