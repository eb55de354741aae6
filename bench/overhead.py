"""What the gateway costs beside its engine: `bench/serve.py overhead [--clients 8] [--rounds 5] [--model demo]`.

The same greedy, streamed requests, in turn to the engine itself (with the key that the gateway has) and through the
gateway, by clients that do next to nothing themselves. The overhead is 1 - tokens a second through the gateway over
those of the engine alone, median of the rounds; beside it the processor time of both processes for a token, which other
work on the machine disturbs less. Prints one JSON line.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from soak import Watch, serving


async def ask(url: str, key: str, model: str, number: int, tokens: int) -> int:
    """One streamed answer; how many events with text it had."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    said = [{"role": "user", "content": f"Tell me a long story about the number {number}."}]
    asked = {"model": model, "messages": said, "stream": True, "temperature": 0, "max_tokens": tokens}
    body = json.dumps(asked).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", f"Host: {address.netloc}", f"Authorization: Bearer {key}",
            "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", "", ""]  # fmt: skip
    writer.write("\r\n".join(head).encode() + body)
    count, tail = 0, b""
    while data := await reader.read(1 << 16):
        count += data.count(b"data: {")
        tail = (tail + data)[-64:]
    writer.close()
    if not tail.endswith(b"0\r\n\r\n") or b'"error"' in tail:
        raise RuntimeError(f"an answer broke off: {tail!r}")
    return count


async def load(url: str, key: str, model: str, clients: int, tokens: int) -> int:
    return sum(await asyncio.gather(*(ask(url, key, model, number, tokens) for number in range(clients))))


def cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def compare(facts: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    watch = Watch(facts["pid"])
    engine = watch.engine()
    assert engine
    words = engine.cmdline()
    alone = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    sides = {
        "engine": (alone, engine.environ()["YCDY_ENGINE_KEY"], "served"),
        "gateway": (facts["url"], facts["api_key"], facts["model"]),
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in sides}
    engine_s, gateway_s, events = 0.0, 0.0, 0
    for number in range(given.rounds + 1):
        for name, (url, key, model) in sorted(sides.items(), reverse=bool(number % 2)):
            began, before = time.monotonic(), (cpu_s(engine), cpu_s(watch.gateway))
            count = asyncio.run(load(url, key, model, given.clients, given.tokens))
            if number == 0:  # warms up
                continue
            rates[name].append(count / (time.monotonic() - began))
            if name == "gateway":
                engine_s, events = engine_s + cpu_s(engine) - before[0], events + count
                gateway_s += cpu_s(watch.gateway) - before[1]
    each = [1 - slower / faster for faster, slower in zip(rates["engine"], rates["gateway"], strict=True)]
    return {
        "clients": given.clients, "rounds": given.rounds, "model": given.model,
        "engine_tokens_per_s": round(statistics.median(rates["engine"]), 1),
        "gateway_tokens_per_s": round(statistics.median(rates["gateway"]), 1),
        "overhead": round(statistics.median(each), 4), "overheads": [round(share, 4) for share in each],
        "engine_us_per_token": round(engine_s / events * 1e6, 1),
        "gateway_us_per_token": round(gateway_s / events * 1e6, 1),
        "gateway_share_of_cpu": round(gateway_s / (engine_s + gateway_s), 4),
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/serve.py overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--engine", default="transformers")
    given = parser.parse_args(words)
    with (
        tempfile.TemporaryDirectory(prefix="bench-overhead-") as scratch,
        serving(given.model, given.engine, Path(scratch)) as (facts, _seldom, _process),
    ):
        print(json.dumps(compare(facts, given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
