"""Serving at saturation for minutes, with clients that misbehave and an engine that is killed: `bench/serve.py soak`.

    .venv/bin/python bench/serve.py soak [--minutes 10] [--clients 16] [--kills 5] [--model demo] [--engine auto]

Every client does one thing after the other, drawn by a seed: the openai client (streaming and not), curl, readers
that are slow, vanish in the middle or never read, bodies that are huge, broken or not HTTP, a key of few requests.

- Right: greedy answers equal what was answered alone at the start, by every way of asking; those of a schema fit it.
- Stuck: what has no end within a minute, counted where the client stands.
- Flat: resident memory, sampled every two seconds; the slope is of the least squares line through the second half. The
  engine's is that of its longest life, which begins with loading: it is killed in the first half only.
- Afterwards nothing is in flight, the server ends by SIGTERM with status 0, and leaves no process behind.

Prints one JSON line; exit status 1 where an answer was wrong, a request stuck, or memory grew by over 1 MB a minute.
"""

import argparse
import itertools
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "Who are you?",
    "你是谁？",
    "What is the capital of France?",
    "Count from one to ten.",
    "写一首短诗。",
    "2 + 2?",
)
ASKED = {"temperature": 0, "max_tokens": 24}
STUCK_S = 60.0
GROWTH_MB = 1.0
JUNK = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000, b"\x00" * 4096,
    b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n",
)  # fmt: skip
BROKEN = (
    b"", b"{", b"\xff\xfe", b"[]", b'{"messages":[]}', b'{"messages":[{"role":"robot","content":"x"}]}',
    b'{"messages":' + b"[" * 200_000, b'{"messages":[{"role":"user","content":"x"}],"max_tokens":-1}',
    b'{"messages":[{"role":"user","content":"' + b"x " * 30_000 + b'"}]}',
    b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://127.0.0.1/"}}]}]}',
)  # fmt: skip


class Tally:
    """What the clients met."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stuck: list[str] = []

    def add(self, deed: str, status: str) -> None:
        with self.lock:
            self.deeds[deed] += 1
            self.statuses[status] += 1


class Asker:
    """The ways to ask one server; each returns the status, and checks the answer where there is one."""

    def __init__(self, facts: dict[str, Any], seldom: str, tally: Tally, seed: int) -> None:
        from openai import OpenAI

        self.url, self.key, self.seldom, self.tally = facts["url"], facts["api_key"], seldom, tally
        self.drawn = random.Random(seed)
        self.client = OpenAI(base_url=self.url + "/v1", api_key=self.key, max_retries=0, timeout=STUCK_S)
        self.expected: dict[str, str] = {}

    def whole(self) -> str:
        question = self.drawn.choice(QUESTIONS)
        answer = self.client.chat.completions.create(model="", messages=_said(question), **ASKED)  # type: ignore[call-overload]
        return self._check(question, answer.choices[0].message.content)

    def streamed(self) -> str:
        question, pieces = self.drawn.choice(QUESTIONS), []
        for piece in self.client.chat.completions.create(model="", messages=_said(question), stream=True, **ASKED):  # type: ignore[call-overload]
            pieces.append(piece.choices[0].delta.content or "" if piece.choices else "")
        return self._check(question, "".join(pieces))

    def curl(self) -> str:
        question = self.drawn.choice(QUESTIONS)
        body = json.dumps({"messages": _said(question), "stream": True, **ASKED})
        command = ["curl", "-sN", "--max-time", str(STUCK_S), "-w", "\n%{http_code}", "-d", body,
                   "-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {self.key}",
                   f"{self.url}/v1/chat/completions"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 28:
            raise TimeoutError("curl")
        *lines, status = done.stdout.split("\n")
        return self._check(question, _text(lines)) if status == "200" else status

    def held(self) -> str:
        """Held to a schema that nobody asked for before: right whatever the model would say."""
        name = f"field{self.drawn.randrange(10**6)}"
        schema = {"type": "object", "properties": {name: {"enum": ["yes", "no"]}}, "required": [name],
                  "additionalProperties": False}  # fmt: skip
        shape = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        answer = self.client.chat.completions.create(  # type: ignore[call-overload]
            model="", messages=_said(self.drawn.choice(QUESTIONS)), response_format=shape, **ASKED
        )
        if json.loads(answer.choices[0].message.content).get(name) not in ("yes", "no"):
            with self.tally.lock:
                self.tally.wrong.append(answer.choices[0].message.content)
        return "200"

    def slow(self) -> str:
        """A few bytes at a time."""
        question, got = self.drawn.choice(QUESTIONS), b""
        with self._opened(question) as opened:
            while data := opened.recv(512):
                got += data
                time.sleep(0.02)
        return self._check(question, _text(_lines(got))) if b" 200 " in got[:20] else got[9:12].decode()

    def vanish(self) -> str:
        """Gone in the middle of a stream, with a reset, or before it."""
        with self._opened("Count from one to a thousand.", max_tokens=200) as opened:
            if self.drawn.random() < 0.7:
                opened.recv(1024)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "vanished"

    def deaf(self) -> str:
        """Asks, stays, and never reads."""
        with self._opened("Count from one to a thousand.", max_tokens=200):
            time.sleep(self.drawn.uniform(0.5, 3))
        return "vanished"

    def huge(self) -> str:
        with self._connected() as opened, suppress(ConnectionError):
            opened.sendall(_head(self.key, f"Content-Length: {100 << 20}"))
            for _ in range(self.drawn.randrange(200)):
                opened.sendall(b" " * (1 << 16))
            return opened.recv(64)[9:12].decode()
        return "reset"

    def broken(self) -> str:
        body = self.drawn.choice(BROKEN)
        with self._connected() as opened:
            opened.sendall(_head(self.key, f"Content-Length: {len(body)}", "Connection: close") + body)
            return opened.recv(64)[9:12].decode()

    def junk(self) -> str:
        with self._connected() as opened, suppress(ConnectionError):
            opened.sendall(self.drawn.choice(JUNK))
            return opened.recv(64)[9:12].decode() or "closed"
        return "reset"

    def bounded(self) -> str:
        """With a key of few requests a minute."""
        body = json.dumps({"messages": _said("2 + 2?"), "max_tokens": 1}).encode()
        with self._connected() as opened:
            opened.sendall(_head(self.seldom, f"Content-Length: {len(body)}", "Connection: close") + body)
            return opened.recv(64)[9:12].decode()

    def _check(self, question: str, text: str | None) -> str:
        if self.expected.setdefault(question, text or "") != text:
            with self.tally.lock:
                self.tally.wrong.append(f"{question} {text!r} instead of {self.expected[question]!r}")
        return "200"

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), timeout=STUCK_S) as opened:
            yield opened

    @contextmanager
    def _opened(self, question: str, **more: Any) -> Iterator[socket.socket]:
        body = json.dumps({"messages": _said(question), "stream": True, **ASKED, **more}).encode()
        with self._connected() as opened:
            opened.sendall(_head(self.key, f"Content-Length: {len(body)}", "Connection: close") + body)
            yield opened


DEEDS: dict[Callable[[Asker], str], int] = {
    Asker.streamed: 30, Asker.whole: 20, Asker.curl: 10, Asker.held: 10, Asker.slow: 8, Asker.vanish: 10, Asker.deaf: 4,
    Asker.huge: 4, Asker.broken: 6, Asker.junk: 4, Asker.bounded: 4,
}  # fmt: skip


class UnavailableError(Exception):
    """The engine was being restarted, as the server said."""


def _said(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _head(key: str, *lines: str) -> bytes:
    told = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *lines, "", ""]
    return "\r\n".join(told).encode()


def _lines(got: bytes) -> list[str]:
    """The lines of a chunked body, chunks' sizes among them."""
    return got.decode(errors="replace").replace("\r\n", "\n").split("\n")


def _text(lines: list[str]) -> str:
    """What a stream said. Raises UnavailableError where it ended with an error, ValueError where it did not end."""
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    pieces = [json.loads(event) for event in events if event != "[DONE]"]
    if any("error" in piece for piece in pieces):
        raise UnavailableError
    if not events or events[-1] != "[DONE]":
        raise ValueError("a stream without an end")
    return "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])


def work(asker: Asker, until: float) -> None:
    """One client: one thing after the other."""
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

    while time.monotonic() < until:
        (deed,) = asker.drawn.choices(list(DEEDS), list(DEEDS.values()))
        name = deed.__name__
        try:
            status = deed(asker)
        except (TimeoutError, APITimeoutError):
            status = "stuck"
            with asker.tally.lock:
                asker.tally.stuck.append(name)
        except APIStatusError as error:
            status = str(error.status_code)
        except APIConnectionError:
            status = "reset"
        except (UnavailableError, APIError):
            status = "ended by an error event"
        except ConnectionError:
            status = "reset"
        asker.tally.add(name, status)
        if status in ("503", "reset", "ended by an error event"):
            time.sleep(0.2)


class Watch:
    """Resident memory of the gateway and its engine, and the engine's death by our hand."""

    def __init__(self, gateway: int) -> None:
        self.gateway = psutil.Process(gateway)
        self.samples: list[tuple[float, float]] = []
        self.engines: dict[int, list[tuple[float, float]]] = {}
        self.kills = 0

    def engine(self) -> psutil.Process | None:
        """The leash's child; None between two lives."""
        with suppress(psutil.Error):
            return next((engine for leash in self.gateway.children() for engine in leash.children()), None)
        return None

    def follow(self, began: float, seconds: float, kills: int) -> None:
        due = [began + seconds / 2 * (number + 1) / kills for number in range(kills)]
        while (now := time.monotonic()) < began + seconds:
            self.samples.append((now - began, self.gateway.memory_info().rss / 1e6))
            engine = self.engine()
            with suppress(psutil.Error):
                if engine:
                    self.engines.setdefault(engine.pid, []).append((now - began, engine.memory_info().rss / 1e6))
                if engine and due and now > due[0]:
                    due.pop(0)
                    engine.kill()
                    self.kills += 1
            time.sleep(2)


def slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute, of the least squares line through the second half."""
    kept = [sample for sample in samples if sample[0] >= (samples[0][0] + samples[-1][0]) / 2]
    if len(kept) < 3:
        return 0.0
    at, sizes = sum(t for t, _ in kept) / len(kept), sum(size for _, size in kept) / len(kept)
    spread = sum((t - at) ** 2 for t, _ in kept)
    return 60 * sum((t - at) * (size - sizes) for t, size in kept) / spread


@contextmanager
def serving(model: str, engine: str, folder: Path) -> Iterator[tuple[dict[str, Any], str, "subprocess.Popen[str]"]]:
    """`serve` as a person starts it: its facts, a key of six requests a minute, the process."""
    keys, seldom = folder / "keys.yaml", "sk-seldom-0123456789"
    keys.write_text(f"- {{name: seldom, key: {seldom}, requests_per_minute: 6}}\n")
    keys.chmod(0o600)
    words = ["--home", str(folder / "home"), "serve", "--model", model, "--engine", engine, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "toolbox", *words, "--api-keys", str(keys), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout
    try:
        yield json.loads(process.stdout.readline()), seldom, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def afterwards(facts: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """What is left in the server when nobody asks any more."""
    import httpx

    client = httpx.Client(
        base_url=facts["url"], headers={"Authorization": f"Bearer {facts['api_key']}"}, trust_env=False
    )
    deadline = time.monotonic() + STUCK_S
    while time.monotonic() < deadline:
        lines = client.get("/metrics").text.splitlines()
        left = {
            line.split()[0]: line.split()[1] for line in lines if "requests_in_flight " in line or "_waiting " in line
        }
        if set(left.values()) == {"0", "1"} and client.get("/health").status_code == 200:  # this request itself
            break
        time.sleep(0.5)
    restarts = next(int(line.split()[1]) for line in lines if line.startswith("ycdy_engine_restarts_total"))
    return {
        "health": client.get("/health").json()["status"], "in_flight": int(left["ycdy_requests_in_flight"]) - 1,
        "waiting": int(left["ycdy_requests_waiting"]), "restarts": restarts, "gateway_fds": watch.gateway.num_fds(),
    }  # fmt: skip


def soak(given: argparse.Namespace) -> dict[str, Any]:
    tally = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="bench-soak-") as scratch,
        serving(given.model, given.engine, Path(scratch)) as (facts, seldom, process),
    ):
        askers = [Asker(facts, seldom, tally, given.seed + number) for number in range(given.clients)]
        expected = _alone(askers[0])
        for asker in askers:
            asker.expected = expected
        watch, began = Watch(facts["pid"]), time.monotonic()
        fds, seconds = watch.gateway.num_fds(), given.minutes * 60
        threads = [threading.Thread(target=work, args=(asker, began + seconds)) for asker in askers]
        for thread in threads:
            thread.start()
        watch.follow(began, seconds, given.kills)
        for thread in threads:
            thread.join(2 * STUCK_S)
        hanging = sum(thread.is_alive() for thread in threads)
        left = afterwards(facts, watch)
        family = [watch.gateway, *watch.gateway.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        _gone, alive = psutil.wait_procs(family, timeout=10)
    longest = max(watch.engines.values(), key=len)
    return {
        "minutes": given.minutes, "clients": given.clients, "requests": tally.deeds.total(), "kills": watch.kills,
        "statuses": dict(sorted(tally.statuses.items())), "deeds": dict(tally.deeds), "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:1], "stuck": len(tally.stuck) + hanging, "stuck_in": tally.stuck[:3],
        "gateway_mb": [round(watch.samples[0][1], 1), round(watch.samples[-1][1], 1)],
        "gateway_mb_per_minute": round(slope(watch.samples), 3),
        "engine_mb": [round(longest[0][1], 1), round(longest[-1][1], 1)],
        "engine_mb_per_minute": round(slope(longest), 3), "gateway_fds_before": fds, "after": left,
        "exit_status": status, "left_behind": len(alive),
    }  # fmt: skip


def _alone(asker: Asker) -> dict[str, str]:
    """The answers that are right: each question asked by itself, twice."""
    for question, _again in itertools.product(QUESTIONS, range(2)):
        said = asker.client.chat.completions.create(model="", messages=_said(question), **ASKED)  # type: ignore[call-overload]
        asker._check(question, said.choices[0].message.content)
    return asker.expected


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/serve.py soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    found = soak(parser.parse_args(words))
    print(json.dumps(found, ensure_ascii=False))
    well = found["after"]["health"] == "ok" and not found["exit_status"] and not found["left_behind"]
    flat = max(found["gateway_mb_per_minute"], found["engine_mb_per_minute"]) <= GROWTH_MB
    return 0 if well and flat and not found["wrong"] and not found["stuck"] else 1


if __name__ == "__main__":
    sys.exit(main())
